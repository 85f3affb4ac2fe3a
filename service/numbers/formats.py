"""The formats of a phone number: full, national, remove_plus."""

import re
from enum import StrEnum

from service import upstream
from service.errors import CountriesUnavailable


class NumberFormat(StrEnum):
    """The three formats; the edit page shows an example of each."""

    FULL = "full"
    NATIONAL = "national"
    REMOVE_PLUS = "remove_plus"


def phone_code_of(country_id: int) -> str:
    """The digits of a country's phone code; raises CountriesUnavailable."""
    try:
        countries = upstream.init()["countries"]
    except upstream.UpstreamError as e:
        raise CountriesUnavailable from e
    for country in countries:
        code = re.sub(r"[^0-9]", "", country.get("phone_code") or "")
        if country["id"] == country_id and code:
            return code[:8]
    raise CountriesUnavailable


def present(digits: str, number_format: str, phone_code: str | None) -> str:
    """The number in one of the formats; `national` needs the country's `phone_code`."""
    if number_format == NumberFormat.FULL:
        return f"+{digits}"
    if number_format == NumberFormat.NATIONAL:
        return digits.removeprefix(phone_code or "") or digits
    return digits
