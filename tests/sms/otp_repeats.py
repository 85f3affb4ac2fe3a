"""What a text may repeat without end: reading twice of it must take no more than twice the time."""

# Three dots part what is repeated from what begins and ends the text, far from most of it
REPEATS = (
    "a", "A", "1", "é", "ж", "ع", "中", "๑", " ", "\n", "-", ".", ",", ":", "#", "*", "%", "/", "@",
    "€", "\u200f", "\ufdfa", "1 ", "1-", "1,", "1.", "12:", "a1", "A1-", "@a", "a.", "www.", "*1",
    "+1 ", "(1) ", "code ", "code: 1234 ", "otp", "kod", "kód", "пин", "код 1234. ", "1 min ",
    "http://a", "@x.io #1", "验证码", "no. 1 ", "is is ", "0 000 ", "1/1/", "5 € ",
    "use 4938 ", "sent to 1 ", "card is 1 ", "【1a】", "*12*a", "code 1234\n",
    "1234 is your code. ", "PIN on 4938 ", "log in with 493817 ", "booking code 493817 ",
    "order: 493817 ", "1-1-1-A", "4938\n", "code Acme Ltd. is 4938 ", "you won, code 4938 ",
    "code …1234\n… code", "code …x …1234", "code is …1234 … is your code", "1234 …a …code",
    "code …order 1234 …", "code …4938 for 5512 … 4938", "code …a. ….", "code (…(…(4938",
)  # fmt: skip


def filled(repeat: str, length: int) -> str:
    """A text of `length` characters that repeats one of REPEATS."""
    start, body, end = repeat.split("…") if "…" in repeat else ("", repeat, "")
    return start + (body * length)[: length - len(start) - len(end)] + end
