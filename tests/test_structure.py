"""Rules about the code itself."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from config import DATABASE_VARIABLES, Config

ROOT = Path(__file__).parents[1]
# The folders and modules of service/ from the top down; "" is service/__init__ itself
LEVELS = [
    "demo", "demo_history", "sandbox", "web_worker", "", "commands", "pages", "api", "sms",
    "numbers", "search", "history", "watch", "waiting", "webhooks", "auth", "users", "upstream",
    "cache", "audit", "retention", "database", "outbound", "dialling", "deadlines", "limits",
    "metrics", "keys",
    "fields", "logs", "errors", "version",
]  # fmt: skip
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "service").rglob("*.py"))
    if "migrations" not in path.parts
}


def imports_of(module):
    """The modules of this project that a module imports at its top."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def level_of(module):
    return LEVELS.index([*module.split("."), ""][1])


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downward(module):
    """A folder imports from itself and from those below it; only create_app reads the settings."""
    for name in imports_of(module):
        if name.split(".")[0] == "service":
            assert level_of(name) >= level_of(module), (module, name)
        if name == "config":
            assert module in ("service", "service.demo")


def test_no_import_goes_in_a_circle():
    TopologicalSorter({module: list(imports_of(module)) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_stay_small(module):
    tree = ast.parse(MODULES[module].read_text())
    assert len(MODULES[module].read_text().splitlines()) <= 380
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 45, node.name


@pytest.mark.parametrize("path", [*MODULES.values(), ROOT / "config.py", ROOT / "wsgi.py"], ids=str)
def test_a_module_docstring_is_one_sentence(path):
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text)) or ""
    if text:
        assert docstring.endswith(".") and "\n" not in docstring and ". " not in docstring


def test_tests_stand_alone():
    """No test imports another test module, or a private name of the service."""
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not re.search(r"(^|\.)test_", node.module or ""), (path, node.module)
                if (node.module or "").startswith("service"):
                    private = [alias.name for alias in node.names if alias.name.startswith("_")]
                    assert not private, (path, private)


def test_a_web_process_loads_no_command():
    """Nor Alembic, nor the demo: a quarter of its start and a seventh of its memory."""
    code = "import sys, wsgi; print(*sys.modules)"
    env = {"DATABASE_URL": "sqlite://", "SECRET_KEY": "secret"}
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True, text=True
    ).stdout.split()
    assert "service.commands" in loaded
    needless = ("alembic", "flask_migrate", "service.commands.", "service.demo", "service.sandbox")
    assert [name for name in loaded if name.startswith(needless)] == []


def test_every_setting_command_and_route_is_documented(app):
    text = "\n".join(path.read_text() for path in DOCUMENTS)
    wanted = {name for name in vars(Config({})) if not name.startswith("SQLALCHEMY_")}
    wanted = wanted - {"DATABASE_HOSTS"} | set(DATABASE_VARIABLES)
    for rule in app.url_map.iter_rules():
        if rule.endpoint != "static":
            wanted.add(re.sub(r"/?<.*", "", rule.rule).rstrip("/"))
    for name in set(app.cli.list_commands(None)) - {"run", "shell", "routes", "db"}:
        command = app.cli.get_command(None, name)
        wanted |= {f"{name} {sub}" for sub in getattr(command, "commands", {})} or {name}
    assert {name for name in wanted if name not in text} == set()


def events_of(module):
    """The names of the events that a module logs; of one that is made up, its end."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "event",
            "Change",
        ):
            strings = (
                part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)
            )
            yield from (string for string in strings if isinstance(string, str))


def test_every_event_of_the_log_is_explained():
    explained = (ROOT / "docs/operating.md").read_text()
    logged = {name for module in MODULES for name in events_of(module)}
    assert len(logged) > 30 and {name for name in logged if f"{name}`" not in explained} == set()


def test_the_readme_is_a_screen_and_a_half():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_links_of_a_document_lead_somewhere(path):
    text = path.read_text()
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        assert (path.parent / file).exists() if file else anchor in anchors, target


def test_every_route_decides_who_may_call(app):
    """A new route has to be added here, with a look at its credentials."""
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}
    keyed = {"init", "get_number", "ingest", "numbers", "messages", "summary"}
    public = {"healthz", "openapi_json", "watch"}
    pages = {
        "overview", "new_messages", "new_number", "summary", "numbers", "messages", "reveal",
        "edit", "send_test", "rotate_secret", "rotate_key", "webhooks", "redeliver", "enable",
    }  # fmt: skip
    public_pages = {"home", "login", "logout", "docs"}
    assert endpoints == {"static"} | {f"api.{name}" for name in keyed | public} | {
        f"profile.{name}" for name in pages | public_pages
    }
    client = app.test_client()
    for rule in app.url_map.iter_rules():
        blueprint, _, name = rule.endpoint.partition(".")
        if blueprint == "profile" and name in pages and "GET" in rule.methods:
            assert client.get(rule.rule).headers["Location"] == "/login"


@pytest.mark.server
def test_the_sandbox_is_no_part_of_production():
    code = "import wsgi, sys; assert not [n for n in sys.modules if 'demo' in n or 'sandbox' in n]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
