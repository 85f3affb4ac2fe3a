"""The SMS gateways: how each one's request is read, and what it accepts as success."""

from service.sms.gateways import (
    android_sms_gateway,
    generic,
    jasmin,
    kannel,
    main_server,
    twilio,
)

FORMATS = {
    "main-server": main_server.GATEWAY,
    "generic": generic.GATEWAY,
    "kannel": kannel.GATEWAY,
    "jasmin": jasmin.GATEWAY,
    "twilio": twilio.GATEWAY,
    "android-sms-gateway": android_sms_gateway.GATEWAY,
}
