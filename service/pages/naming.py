"""What the main server calls its countries and operators, and numbers as their user reads them."""

from typing import Any

from flask import current_app

from service import upstream
from service.database.models import PhoneNumber, User
from service.numbers.formats import NumberFormat, code_in, present, read_codes


class Names:
    """The names in `data` of the main server's init, by id."""

    def __init__(self, data: dict[str, Any]) -> None:
        countries, operators = data.get("countries", []), data.get("operators", [])
        self._countries = {row["id"]: row.get("name") for row in countries}
        self._operators = {row["id"]: row.get("name") for row in operators}
        self._codes = {row["id"]: read_codes(row.get("phone_code")) for row in countries}

    def country(self, id: int) -> str:
        return self._countries.get(id) or f"country {id}"

    def operator(self, id: int) -> str:
        return self._operators.get(id) or f"operator {id}"

    def spelled(self, user: User, digits: str, number: PhoneNumber | None) -> str:
        """The digits of a number in the user's format, or with `+` where that is not known."""
        wanted, code = user.number_format or NumberFormat.FULL, None
        if wanted == NumberFormat.NATIONAL:
            known = self._codes.get(number.country_id, []) if number else []
            code = (number and number.phone_code) or code_in(digits, known)
            wanted = wanted if code else NumberFormat.FULL
        return present(digits, wanted, code)


def names() -> Names:
    """The names as this process knows them, without asking: the last that were cached."""
    if known := upstream.known_init():
        remember(known)
    found: Names = current_app.extensions.get("names") or Names({})
    return found


def remember(data: dict[str, Any]) -> None:
    """Keep the names of an init also when the cache has forgotten it: they rarely change."""
    current_app.extensions["names"] = Names(data)
