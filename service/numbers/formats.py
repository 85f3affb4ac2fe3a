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


def phone_codes_of(country_id: int) -> list[str]:
    """The digits of a country's phone codes, longest first; raises CountriesUnavailable."""
    try:
        countries = upstream.init()["countries"]
    except upstream.UpstreamError as e:
        raise CountriesUnavailable from e
    for country in countries:
        if country["id"] == country_id and (codes := read_codes(country.get("phone_code"))):
            return codes
    raise CountriesUnavailable


def read_codes(given: str | int | None) -> list[str]:
    """The phone codes in `44`, "+44", "0044" or "1-809, 1-829 and 1-849"."""
    parts = re.split(r"[,;/|&\n]|\band\b|\bor\b", str(given))
    codes = {re.sub(r"[^0-9]", "", part).lstrip("0") for part in parts}
    # A code with its area has at most 7 digits, and a record room for 8
    return sorted((code for code in codes if 0 < len(code) <= 8), key=len, reverse=True)


def code_in(digits: str, codes: list[str]) -> str | None:
    """The longest of `codes` that the number begins with."""
    return next((code for code in codes if digits.startswith(code)), None)


def present(digits: str, number_format: str, phone_code: str | None) -> str:
    """The number in one of the formats; `national` needs the country's `phone_code`."""
    if number_format == NumberFormat.FULL:
        return f"+{digits}"
    if number_format == NumberFormat.NATIONAL:
        return digits.removeprefix(phone_code or "") or digits
    return digits
