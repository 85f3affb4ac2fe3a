"""Phone numbers for your tests, and the codes that they receive, in Python 3.

It reads the environment: SERVICE is the service's address, and KEY your API key.
"""

import json
import os
import time
from urllib.parse import urlencode
from urllib.request import Request, urlopen


def call(name, **parameters):
    """The `data` of a call; what is refused raises urllib.error.HTTPError."""
    url = f"{os.environ['SERVICE']}/api/{name}?{urlencode(parameters)}"
    request = Request(url, headers={"Authorization": f"Bearer {os.environ['KEY']}"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


class Number:
    """A phone number of your own: `full` is what to fill in, as in +447400849540."""

    def __init__(self, country_id):
        granted = call("get-number", country_id=country_id, number_format="full")
        self.full = granted["phone_number"]
        # You may have had the same number before: its old codes do not count
        earlier = call("messages", phone_number=self.full, limit=1)["messages"]
        self.last_id = earlier[-1]["id"] if earlier else 0

    def next_code(self, seconds=60):
        """The next code that arrives; raises TimeoutError when none does."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            wait = min(25, max(0, int(give_up - time.monotonic())))
            where = {"phone_number": self.full, "after": self.last_id, "limit": 1}
            found = call("messages", wait=wait, **where)["messages"]
            if not found:
                time.sleep(0.5)  # the service may answer at once while many are waiting
                continue
            self.last_id = found[0]["id"]
            if found[0]["otp_code"]:
                return found[0]["otp_code"]
        raise TimeoutError(f"no code came for {self.full} within {seconds} seconds")
