"""docs/api.md, from the same source as /openapi.json: `python -m service.api.markdown`."""

from collections.abc import Iterable, Iterator, Sequence

import click

from service.api.endpoints import FOR_OPERATORS, INTRODUCTION, paragraphs
from service.api.reference import Call, calls, webhook

ELSEWHERE = (
    "The same is at `/openapi.json` for programs (OpenAPI 3.1), and at `/docs` as a page, with"
    " [examples](examples): receivers that verify the webhook's signature, tests that wait for a"
    " code."
)
# Where the documents are checked, an SMS has come before the call that reads it
ARRIVAL = (
    '<!-- run: curl -sf "$SERVICE/api/ingest/$INGEST_KEY" -d to=+447400849540'
    " -d 'text=Your code is 493817' -d id=41 -->\n\n"
)


def page() -> str:
    """The whole document."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield "<!-- Made by `python -m service.api.markdown > docs/api.md` -->\n"
    yield "# The API\n"
    yield from (f"{paragraph}\n" for paragraph in paragraphs(INTRODUCTION))
    yield f"{ELSEWHERE}\n"
    yield "The commands below need these:\n"
    yield "<!-- not run: it is the reader's own address and key -->\n"
    yield "```sh\nSERVICE=https://YOUR-SERVICE\nKEY=YOUR_API_KEY\nINGEST_KEY=OF_YOUR_GATEWAY\n```\n"
    everything = calls("$SERVICE")
    yield "## For users\n"
    for call in everything:
        if not call.for_operator:
            yield from _call(call)
    yield from _webhook()
    yield "## For the operator\n"
    yield from (f"{paragraph}\n" for paragraph in paragraphs(FOR_OPERATORS))
    for call in everything:
        if call.for_operator:
            yield from _call(call)


def _call(call: Call) -> Iterator[str]:
    yield f"### {call.title}\n"
    yield from (f"{paragraph}\n" for paragraph in call.paragraphs)
    before = ARRIVAL if call.name == "messages" else ""
    yield f"{before}```sh\n{call.command}\n```\n\n```json\n{call.answer}\n```\n"
    if call.parameters:
        yield from _table(("parameter", "meaning"), call.parameters)
    yield from _table(("status", "message", "when"), call.failures)


def _webhook() -> Iterator[str]:
    told = webhook()
    yield "### The webhook\n"
    yield f"{told.summary} It is POSTed to the user's Webhook URL:\n"
    yield f"```json\n{told.body}\n```\n"
    yield f"{told.description}\n"
    yield from _table(("header", "meaning"), told.headers)
    yield from _table(("the answer", "what follows"), told.answers)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""


if __name__ == "__main__":
    click.echo(page(), nl=False)
