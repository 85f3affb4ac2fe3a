"""README.md and docs/*.md: their commands are run, and answer what is shown."""

import html
import itertools
import os
import re

import pytest
import requests

from service.api import examples, markdown
from service.sandbox import create_sandbox
from tests.conftest import SECRET_KEY, SYSTEM_KEY
from tests.databases import on_sqlite
from tests.docs.blocks import Block, blocks_of, is_like, run
from tests.fixtures import BIN, ROOT, new_secret
from tests.forms import change
from tests.mariadb import free_port
from tests.peers import serving

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {str(path.relative_to(ROOT)): blocks_of(path.read_text()) for path in DOCUMENTS}
# How many blocks of each are not run; each says why
NOT_RUN = {
    "docs/api.md": 1, "docs/extraction.md": 1, "docs/gateways.md": 2, "docs/growing.md": 1,
    "docs/main-server.md": 3, "docs/operating.md": 6, "docs/performance.md": 1,
}  # fmt: skip


@pytest.fixture
def environment(start, dice, app, make_user, make_provider, receiver, database_url):
    """What the commands find in the environment: the service as the README starts it, with a user
    whose webhooks are received, and a main server."""
    user, ingest, port = make_user(), make_provider(), free_port()
    change(app, user, webhook_url=receiver.url)
    secret = new_secret()
    sandbox = create_sandbox(SYSTEM_KEY, webhook_secret=secret)
    with serving(sandbox) as main_server:
        settings = {
            "DATABASE_URL": database_url, "SECRET_KEY": SECRET_KEY, "PORT": str(port),
            "MAIN_SERVER_URL": main_server, "SYSTEM_API_KEY": SYSTEM_KEY,
            "MAIN_SERVER_WEBHOOK_SECRET": secret, "WEB_CONCURRENCY": "1",
            "WEBHOOK_REQUIRE_HTTPS": "0", "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }  # fmt: skip
        _, url = start("gunicorn", "--bind", f"127.0.0.1:{port}", "wsgi:app", port=port, **settings)
        sandbox.config["DELIVER_TO"] = f"{url}/api/ingest/{SYSTEM_KEY}"
        yield settings | {
            "PATH": f"{BIN}:{os.environ['PATH']}", "LANG": "C.UTF-8",
            "SERVICE": url, "KEY": user.key, "INGEST_KEY": ingest.rpartition("/")[2],
        }  # fmt: skip


@on_sqlite
@pytest.mark.timeout(600)  # each command of `flask` starts the service anew
@pytest.mark.parametrize(
    "name", [name for name, blocks in BLOCKS.items() if any(not b.reason for b in blocks)]
)
def test_the_commands_answer_what_is_shown(environment, name):
    assert run(BLOCKS[name], environment) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_block_is_overlooked(path):
    """As one would be that is in a list, or has another name for a shell."""
    fences = re.findall(r"^( *)(?:```|~~~)(.+)$", path.read_text(), re.M)
    known = {"sh", "shell", "bash", "console", "json", "text", "toml", "yaml", "ini", "python"}
    assert {(indent, name) for indent, name in fences if indent or name not in known} == set()


def test_what_is_not_run_is_counted():
    counts = {name: sum(bool(b.reason) for b in blocks) for name, blocks in BLOCKS.items()}
    assert {name: n for name, n in counts.items() if n} == NOT_RUN


@on_sqlite
def test_the_commands_of_the_page_can_be_pasted(environment):
    """From /docs as it is served, but for the SMS that has to come before it is read."""
    page = requests.get(f"{environment['SERVICE']}/docs", timeout=30).text
    shown = re.findall(r"<pre[^>]*>(?:<code>)?(.*?)(?:</code>)?</pre>", page, re.S)
    texts = [html.unescape(text) for text in shown]
    [sms] = [block for block in BLOCKS["docs/api.md"] if "id=41" in block.command]
    pairs = itertools.pairwise(texts)
    calls = [Block(command, answer) for command, answer in pairs if command.startswith("curl ")]
    assert len(calls) == 7
    before = next(n for n, call in enumerate(calls) if "/api/messages" in call.command)
    assert run([*calls[:before], sms, *calls[before:]], environment) == []


@on_sqlite
def test_the_page_shows_the_files_of_the_examples(client):
    page = html.unescape(client.get("/docs").text)
    shown = {example.name: example.text for example in examples.RECEIVERS + examples.RECIPES}
    files = {path.name: path.read_text() for path in (ROOT / "docs/examples").iterdir()}
    assert shown == {name: text for name, text in files.items() if not name.startswith("__")}
    assert [name for name, text in files.items() if text not in page] == []


@on_sqlite
def test_the_page_has_first_what_a_user_needs(client):
    page = client.get("/docs").text
    names = ("get_number", "messages", "webhook", "receivers", "recipes", "operator", "ingest")
    places = [page.index(f'id="{name}"') for name in names]
    assert places == sorted(places)


def test_the_api_document_is_current():
    """`python -m service.api.markdown > docs/api.md` makes it so."""
    assert (ROOT / "docs/api.md").read_text() == markdown.page()


# --- the runner ---------------------------------------------------------------------------

DOCUMENT = """
<!-- run: X=1 -->

```sh
echo "$X"
```

```text
1
```

<!-- not run: why -->

```sh
exit 9
```

```console
$ printf 'a %s\\n' \\
    b
a b
$ true
```

    $ echo 2026-01-02T03:04:05Z, 1 2
    2026-11-25T09:30:00.123456Z, … 2

A paragraph.

    not a command
"""


def test_the_runner_reads_the_blocks_of_a_document():
    blocks = blocks_of(DOCUMENT)
    assert blocks == [
        Block("X=1"),
        Block('echo "$X"\n', "1\n"),
        Block("exit 9\n", None, "why"),
        Block("printf 'a %s\\n' \\\n    b", "a b\n"),
        Block("true"),
        Block("echo 2026-01-02T03:04:05Z, 1 2", "2026-11-25T09:30:00.123456Z, … 2\n\n"),
    ]
    assert run(blocks, dict(os.environ)) == []


@pytest.mark.parametrize(
    "block", [Block("false"), Block("exit 0"), Block("echo 1", "2"), Block("echo 1", "")]
)
def test_the_runner_tells_what_is_wrong(block):
    [wrong] = run([Block("true"), block], dict(os.environ))
    assert block.command in wrong or "ended early" in wrong


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        ('{"a": 1}\n', '{"a":1}', True),
        ('{"a":1}', '{"a":2}', False),
        ('{"a":1}', '{"a":1,"b":2}', False),
        ('{"a":1,…}', '{"a":1,"b":2}', True),
        ("in 3 ms", "in 12 ms", True),
        ("2026-11-25", "2027-01-01", True),
        ("+447400849540", "+447400849541", False),
        (".", "x", False),
    ],
)
def test_the_runner_compares_all_but_what_varies(shown, printed, alike):
    assert is_like(shown, printed) is alike
