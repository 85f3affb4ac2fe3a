"""Tell which pinned packages are yanked, or have a newer version; exit 1 if one is yanked.

The index is pip's own, asked by PEP 691; what it does not answer is told, and is no failure.
Vulnerabilities are not in that protocol: look them up, for instance with pip-audit.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pip._internal.models.index import PyPI
from pip._vendor.packaging.version import InvalidVersion, Version

ROOT = Path(__file__).parents[1]
FILES = ("requirements.txt", "requirements-dev.txt", "benchmarks/requirements.txt")
ACCEPT = {"Accept": "application/vnd.pypi.simple.v1+json"}


def pins():
    """The pinned version of each package, by name."""
    for file in FILES:
        text = (ROOT / file).read_text()
        yield from re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)


def index():
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return os.environ.get("PIP_INDEX_URL") or told or PyPI.simple_url


def version_of(file):
    """The version in a file's name, or None."""
    found = re.search(r"-(\d[^-]*?)(?:-|\.tar\.gz$|\.zip$)", file["filename"])
    try:
        return Version(found[1]) if found else None
    except InvalidVersion:
        return None


def check(base, pin):
    """(whether the pin is yanked, a line to print or None) of one package."""
    name, pinned = pin
    request = urllib.request.Request(f"{base}/{name}/", headers=ACCEPT)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            files = json.load(answer)["files"]
    except (OSError, ValueError, KeyError) as e:
        return False, f"{name} {pinned}: not known, the index did not tell ({type(e).__name__})"
    of_pin = [file for file in files if version_of(file) == Version(pinned)]
    if of_pin and all(file.get("yanked") for file in of_pin):
        return True, f"{name} {pinned}: YANKED: {of_pin[0]['yanked']}"
    good = {version_of(file) for file in files if not file.get("yanked")} - {None}
    newest = max((v for v in good if not v.is_prerelease), default=Version(pinned))
    return False, f"{name} {pinned}: {newest} is newer" if newest > Version(pinned) else None


def main():
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(partial(check, index().rstrip("/")), sorted(set(pins()))))
    print("\n".join(line for _, line in found if line) or "every pin is the newest version")
    return int(any(yanked for yanked, _ in found))


if __name__ == "__main__":
    sys.exit(main())
