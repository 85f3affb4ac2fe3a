"""Rules about the code itself."""

import ast
import re
import sys
from pathlib import Path

import pytest

from config import DATABASE_VARIABLES, Config

ROOT = Path(__file__).parents[1]
# Each module imports only from those after it
ORDER = [
    "demo", "sandbox", "__init__", "cli", "api", "profile", "sessions", "checks", "history",
    "openapi", "assignment", "ingestion", "auth", "gateways", "delivery", "guard", "secretbox",
    "upstream", "webhooks", "schemas", "models", "outbound", "otp", "charsets", "slots", "logs",
    "errors",
]  # fmt: skip


def modules():
    return sorted((ROOT / "service").glob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.stem)
def test_imports_run_downward(path):
    tree = ast.parse(path.read_text())
    below = ORDER[ORDER.index(path.stem) + 1 :]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "service":
            names = [node.module.partition(".")[2]] if "." in node.module else []
            for name in names or [alias.name for alias in node.names]:
                name = name if name in ORDER else "__init__"
                # the one exception: the demo command starts what production never imports
                assert name in below or (path.stem, name) == ("cli", "demo"), (path.stem, name)
        if isinstance(node, ast.ImportFrom | ast.Import) and path.stem != "demo":
            roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            assert "config" not in roots or path.stem == "__init__"


@pytest.mark.parametrize("path", [*modules(), ROOT / "config.py", ROOT / "wsgi.py"], ids=str)
def test_a_module_docstring_is_one_sentence(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert "\n" not in docstring
    assert docstring.endswith(".")


def test_every_setting_command_and_route_is_in_the_readme(app):
    readme = (ROOT / "README.md").read_text()
    wanted = {name for name in vars(Config({})) if not name.startswith("SQLALCHEMY_")}
    wanted = wanted - {"DATABASE_HOSTS"} | set(DATABASE_VARIABLES)
    for rule in app.url_map.iter_rules():
        if rule.endpoint != "static":
            wanted.add(re.sub(r"/?<.*", "", rule.rule).rstrip("/"))
    for name, command in app.cli.commands.items():
        if name in ("run", "shell", "routes", "db"):
            continue
        wanted |= {f"{name} {sub}" for sub in getattr(command, "commands", {})} or {name}
    assert {name for name in wanted if name not in readme} == set()


def test_every_route_decides_who_may_call(app):
    """A new route has to be added here, with a look at its credentials."""
    endpoints = {rule.endpoint for rule in app.url_map.iter_rules()}
    keyed = {"init", "get_number", "ingest", "numbers", "messages", "summary"}
    public = {"healthz", "openapi_json"}
    pages = {
        "overview", "numbers", "messages", "reveal", "edit", "send_test", "rotate_secret",
        "rotate_key", "webhooks", "redeliver", "enable",
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


def test_the_sandbox_is_no_part_of_production():
    code = "import wsgi, sys; assert not {'service.sandbox', 'service.demo'} & set(sys.modules)"
    import subprocess

    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
