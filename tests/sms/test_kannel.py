"""SMS through a real Kannel, from its SMSC port to the database."""

import subprocess
import sys

import pytest
from sqlalchemy import select

from service.database.engine import db
from service.database.models import Message
from tests import kannel
from tests.databases import skip_or_fail
from tests.fixtures import NUMBER, ROOT


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.server
@pytest.mark.parametrize("mo_recode", ["true", "false"])
def test_a_real_kannel_loses_and_doubles_nothing(
    app, make_user, make_provider, assign, tmp_path, database_url, mo_recode
):
    """ASCII, Arabic, several lines, over 160 characters; two came while the service was down."""
    if reason := kannel.missing():
        skip_or_fail(reason)
    user = make_user()
    assign(user.id)
    key = make_provider("kannel", format="kannel").rpartition("/")[2]
    command = [sys.executable, "-m", "tests.kannel", tmp_path, database_url, key, mo_recode]
    done = subprocess.run(
        [*kannel.UNSHARE, *command], cwd=ROOT, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    with app.app_context():
        rows = db.session.scalars(select(Message)).all()
    assert sorted(row.sms_text for row in rows) == sorted(kannel.SENT + kannel.WHILE_DOWN)
    assert {(row.digits, row.user_id) for row in rows} == {(NUMBER, user.id)}
