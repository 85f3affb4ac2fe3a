"""The short form of the crash torture; `make torture` runs the long one."""

import json
import tempfile
from pathlib import Path

import pytest

from tests import mariadb, torture
from tests.databases import skip_or_fail

MISSING = {"mariadb": mariadb.missing, "galera": mariadb.galera_missing}


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", torture.DATABASES)
def test_nothing_acknowledged_is_lost_when_processes_are_killed(database, capsys):
    """20 times kill -9, of the database server too: see torture.check() for what must hold."""
    if database in MISSING and (reason := MISSING[database]()):
        skip_or_fail(reason)
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        try:
            figures = torture.torture(database, 20, Path(folder))
        except BaseException:
            print((Path(folder) / "service.log").read_text()[-20000:])
            raise
    with capsys.disabled():
        print(json.dumps(figures))
    assert figures["acknowledged"]["numbers"] > 50
    assert figures["acknowledged"]["sms"] > 50
