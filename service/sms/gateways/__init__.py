"""The SMS gateways: how each one's request is read, and what it accepts as success."""

from service.sms.gateways import (
    android_sms_gateway,
    generic,
    jasmin,
    kannel,
    main_server,
    plivo,
    telnyx,
    twilio,
    vonage,
)

FORMATS = {
    "main-server": main_server.GATEWAY,
    "generic": generic.GATEWAY,
    "kannel": kannel.GATEWAY,
    "jasmin": jasmin.GATEWAY,
    "twilio": twilio.GATEWAY,
    "android-sms-gateway": android_sms_gateway.GATEWAY,
    "telnyx": telnyx.GATEWAY,
    "vonage": vonage.GATEWAY,
    "plivo": plivo.GATEWAY,
}
