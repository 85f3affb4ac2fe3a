"""flask providers …: what it accepts for which format, shows and prints."""

import shlex

import pytest

from service.database.models import Provider
from service.sms.gateways import FORMATS
from tests.databases import on_sqlite
from tests.fixtures import new_secret
from tests.records import change, messages

N, M = "12025550123", "447400849540"


@pytest.fixture
def add(flask):
    """Add a provider of a format as its operator does."""

    def run(format, *options, name="gw", **how):
        return flask("providers", "add", name, "--format", format, *options, **how)

    return run


def listed(flask):
    return flask("providers", "list", "--json")


def test_a_gateway_is_changed_but_for_its_format_and_key(client, flask, add):
    path = add("android-sms-gateway", "--number", N, "--json")["ingest_path"]
    changed = flask("providers", "set", "gw", "--number", f"+{M}", "--number", f"2={N}", "--json")
    assert (changed["numbers"], changed["format"]) == ({"": M, "2": N}, "android-sms-gateway")
    assert client.post(path, json={}).status_code == 400
    flask("providers", "set", 1, "--secret", "s3cret")
    assert client.post(path, json={}).status_code == 401
    flask("providers", "set", 1, "--secret", "none")
    assert client.post(path, json={}).status_code == 400
    assert listed(flask)[0]["numbers"] == {"": M, "2": N}
    for args in (
        ("gw",),
        ("gw", "--number", "x"),
        ("no", "--secret", "s"),
    ):
        assert "Error" in flask("providers", "set", *args, exit_code=2)
    changed = [e["details"] for e in flask("audit", "--json") if e["action"] == "provider_changed"]
    assert changed[::-1] == [
        {"provider": "gw", "what": ["number"]},
        {"provider": "gw", "what": ["secret"]},
        {"provider": "gw", "what": ["secret"]},
    ]


def test_the_answer_of_a_generic_gateway_is_changed(client, flask, add):
    path = add("generic", "--json")["ingest_path"]
    add("kannel", name="k")
    assert "own answer" in flask("providers", "set", "k", "--reply", "empty", exit_code=2)
    for reply in ("empty", "default"):
        flask("providers", "set", "gw", "--reply", reply)
        answer = client.post(path, json={"to": N, "text": "hi"})
        assert (answer.data == b"") == (reply == "empty")


def test_a_disabled_gateway_is_enabled_again_and_its_name_can_be_used_meanwhile(client, flask, add):
    path = add("generic", "--json")["ingest_path"]
    flask("providers", "disable", "gw")
    flask("providers", "enable", "gw")
    sms = {"to": N, "text": "hi", "id": "1"}
    assert client.post(path, json=sms).status_code == 200
    flask("providers", "disable", "gw")
    second = add("kannel", "--json")
    assert [(row["name"], row["active"]) for row in listed(flask)] == [
        ("gw.1", False),
        ("gw", True),
    ]
    flask("providers", "enable", 1)
    assert client.post(path, json=sms).json["data"]["duplicate"] is True
    assert flask("providers", "disable", "gw", "--json")["id"] == second["id"]


def test_digits_are_an_id_and_no_name(app, flask, add):
    """A name of digits alone would leave open which one is meant."""
    assert "digits alone" in add("generic", name="2", exit_code=2)
    add("generic", name="a"), add("generic", name="b")
    change(app, Provider, 1, name="2")  # by an older version
    assert "is the name of one provider" in flask("providers", "disable", 2, exit_code=2)
    assert flask("providers", "disable", "b", "--json")["id"] == 2
    assert flask("providers", "disable", 1, "--json")["name"] == "2"


@pytest.mark.parametrize(
    "args",
    [
        ("add", "gw", "--format", "pigeon"),
        ("add", "a b", "--format", "generic"),
        ("add", "", "--format", "generic"),
        ("add", "x" * 65, "--format", "generic"),
        ("disable", "nobody"),
        ("disable", "9"),
    ],
)
def test_a_wrong_value_is_told_and_changes_nothing(flask, args):
    assert "Error" in flask("providers", *args, exit_code=2)
    assert listed(flask) == []


def test_add_list_disable(client, flask, add):
    added = add("generic", "--json")
    assert added["ingest_path"] == f"/api/ingest/{added['ingest_key']}"
    sms = {"to": N, "text": "hi"}
    assert client.post(added["ingest_path"], json=sms).status_code == 200
    assert "already" in add("generic", exit_code=2)
    assert flask("providers", "disable", "gw", "--json")["active"] is False
    assert client.post(added["ingest_path"], json=sms).status_code == 401
    expected = {
        "id": 1, "name": "gw", "format": "generic", "number": None, "numbers": None,
        "fields": None, "reply": None, "active": False,
    }  # fmt: skip
    assert listed(flask) == [expected]
    longest = "x" * 64
    add("generic", name=longest)
    [found] = [row["id"] for row in listed(flask) if row["name"] == longest]
    assert flask("providers", "disable", found, "--json")["name"] == longest
    assert [row["active"] for row in listed(flask)] == [False, False]


@on_sqlite
def test_the_options_are_shown_as_they_were_given(flask, add):
    options = (
        "--number", f"+{N}", "--number", f"2=00{M}", "--field", "sms_text=data.text",
        "--field", "sms=messages", "--reply", "empty",
    )  # fmt: skip
    for row in (add("generic", *options, "--json"), *listed(flask)):
        assert (row["number"], row["numbers"]) == (N, {"": N, "2": M})
        assert row["fields"] == {"sms_text": "data.text", "sms": "messages"}
        assert row["reply"] == "empty"
    shown = flask("providers", "list").split("\n")[1].split()
    assert shown[3:] == [f"{N},2={M}", "sms_text=data.text,sms=messages", "empty", "yes"]
    assert f"numbers      {N},2={M}\n" in add("generic", *options, name="other")
    assert "active   no\n" in flask("providers", "disable", "gw")


# --- what a format has a use for ----------------------------------------------------------

GIVEN = {
    "secret": ("secret", "s"),
    "number": ("numbers", N),
    "field": ("fields", "sms_text=a"),
    "reply": ("reply", "empty"),
}


@on_sqlite
@pytest.mark.parametrize("option", GIVEN)
@pytest.mark.parametrize("format", FORMATS)
def test_an_option_that_a_format_would_ignore_is_refused_by_name(flask, add, format, option):
    part, value = GIVEN[option]
    if part in FORMATS[format].heeds:
        return
    answer = add(format, f"--{option}", value, exit_code=2)
    assert f"--{option}" in answer and format in answer
    assert listed(flask) == []


@on_sqlite
@pytest.mark.parametrize(
    ("format", "heeds"),
    [
        ("generic", {"numbers", "fields", "reply"}),
        ("android-sms-gateway", {"secret", "numbers", "reply"}),
        ("main-server", {"secret", "reply"}),
    ],
)
def test_what_the_formats_that_we_answer_in_json_have_a_use_for(add, format, heeds):
    for option, (part, value) in GIVEN.items():
        value = new_secret() if format == "main-server" and option == "secret" else value
        if part in heeds:
            add(format, f"--{option}", value, name=option)


@on_sqlite
@pytest.mark.parametrize("format", [f for f in FORMATS if "secret" in FORMATS[f].heeds])
@pytest.mark.parametrize("secret", ["", " ", "x" * 257])
def test_a_secret_that_is_none_is_no_way_to_do_without_signatures(flask, add, format, secret):
    assert "--secret" in add(format, f"--secret={secret}", exit_code=2)
    assert listed(flask) == []


# --- numbers and fields -------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("format", ["generic", "android-sms-gateway"])
@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        (["me"], "international form"),
        ([""], "international form"),
        (["2="], "international form"),
        ([f"=+{N}"], "is no SIM"),
        ([f"two=+{N}"], "is no SIM"),
        ([f"100=+{N}"], "is no SIM"),
        ([N, M], "SIM 1 has two numbers"),
        ([N, f"1={M}"], "SIM 1 has two numbers"),
        ([f"2={N}", f"02={M}"], "SIM 2 has two numbers"),
    ],
)
def test_numbers_that_are_none_or_contradict_each_other(flask, add, format, numbers, sentence):
    given = [word for number in numbers for word in ("--number", number)]
    answer = add(format, *given, exit_code=2)
    assert sentence in answer and "--number" in answer
    assert listed(flask) == []


@on_sqlite
def test_a_number_is_taken_in_any_notation(add):
    assert add("generic", "--number", "+1 202 555-0123", "--json")["number"] == N
    row = add("generic", "--number", f"SIM2=+{M}", "--json", name="two")
    assert (row["number"], row["numbers"]) == (None, {"2": M})


@on_sqlite
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (["text=a"], "no field 'text'"),
        (["=a"], "no field ''"),
        ([""], "no field ''"),
        (["SMS_TEXT=a"], "no field 'SMS_TEXT'"),
        (["sms_text"], "sms_text needs a path"),
        (["sms_text="], "sms_text needs a path"),
        (["sms_text= "], "sms_text needs a path"),
        (["sms="], "sms needs a path"),
        (["sms_text=a..b"], "sms_text needs a path"),
        (["sms_text=.a"], "sms_text needs a path"),
        (["sms_text=a."], "sms_text needs a path"),
        (["sms_text=a", "sender=b", "sms_text=c"], "sms_text is given twice"),
    ],
)
def test_fields_that_are_none(flask, add, fields, sentence):
    given = [word for field in fields for word in ("--field", field)]
    answer = add("generic", *given, exit_code=2)
    assert sentence in answer and "--field" in answer
    assert listed(flask) == []


# --- what to paste ------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_add_prints_what_to_paste(add, format):
    url = "https://YOUR-SERVICE/api/ingest/ing_"
    assert url in add(format).partition("\n\n")[2]


DEEP = "--field sms_text=data.payload.text --field phone_number=data.payload.to.0.phone_number"


@on_sqlite
@pytest.mark.parametrize(
    ("options", "digits"),
    [
        ("", M),
        (f"--number +{N}", N),
        (f"--number +{N} --number 2=+{M}", M),
        (f"--number 1=+{N} --number 2=+{M}", N),
        (DEEP, M),
        ("--field sms=results --field sender=from --field message_id=messageId", M),
        ("--field sms=a.b --field sms_text=c.d --field sim=e.1 --field phone_number=f", M),
        (f"--field sms_text=text --field sim=slot --number 1=+{N} --number 2=+{M}", N),
        ("--field sms_text=t --field otp_code=o --field received_at=at", M),
    ],
)
def test_what_generic_prints_is_a_command_that_sends_an_sms(app, client, add, options, digits):
    """Whatever the options; here its arguments are posted."""
    words = shlex.split(add("generic", *shlex.split(options)).partition("\n\n")[2])
    path = words[1].removeprefix("https://YOUR-SERVICE")
    body = "&".join(words[n + 1] for n, word in enumerate(words) if word == "-d")
    form = "application/x-www-form-urlencoded"  # curl's, unless it is told another
    mime = "application/json" if "Content-Type: application/json" in words else form
    for _ in range(2):
        assert client.post(path, data=body, content_type=mime).status_code == 200
    [message] = messages(app)
    assert (message.digits, message.otp_code) == (digits, "493817")


def test_the_fields_of_a_gateway_are_replaced_all_together(client, flask):
    mapped = ("--field", "sms_text=data.txt", "--field", "sender=data.from")
    add = ("providers", "add", "gw", "--format", "generic", *mapped, "--json")
    path = flask(*add)["ingest_path"]
    body = {"to": N, "data": {"text": "code 123456"}}
    answer = client.post(path, json=body)
    assert answer.json["errors"] == {"sms_text": ["there is nothing at data.txt"]}
    changed = flask("providers", "set", "gw", "--field", "sms_text=data.text", "--json")
    assert changed["fields"] == {"sms_text": "data.text"}
    assert client.post(path, json=body).status_code == 200
    assert "there is no field" in flask("providers", "set", "gw", "--field", "x=y", exit_code=2)
    assert flask("audit", "--json")[0]["details"] == {"provider": "gw", "what": ["field"]}


def test_fields_are_set_where_a_format_has_use_for_them(flask, add):
    add("twilio")
    told = flask("providers", "set", "gw", "--field", "sms_text=x", exit_code=2)
    assert "twilio has its own fields" in told
