"""Group commit: what several callers write at the same moment is one transaction."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pymysql
import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.database.columns import utcnow
from service.database.engine import db
from service.database.group_commit import GroupCommit
from service.database.models import EndedSession
from tests.peers import until


class Stopped(BaseException):
    """What stops a thread wherever it is."""


class Writing:
    """Writes rows named by text, in groups that it remembers; the first waits for the others."""

    def __init__(self, app):
        self.app, self.groups = app, []
        self.group = GroupCommit(self.write)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.fails, self.stops = {}, set()

    def write(self, tx, items):
        self.groups.append(list(items))
        for item in items:
            tx.upsert(EndedSession, {"id_hash": item}, {"ended_at": utcnow()})
        if self.groups == [["first"]]:
            self.begun.set()
            assert self.go_on.wait(10)
        for item in items:
            if item in self.fails:
                raise self.fails[item]
        if stopped := self.stops.intersection(items):
            self.stops -= stopped
            raise Stopped
        return [item.upper() for item in items]

    def commit(self, *items):
        with self.app.app_context():
            return self.group.commit(items)

    def meanwhile(self, *calls):
        """The outcomes of the first call, then of `calls`, which all came while it wrote."""
        with ThreadPoolExecutor(len(calls) + 1) as pool:
            first = pool.submit(self.commit, "first")
            assert self.begun.wait(10)
            others = [pool.submit(self.commit, *items) for items in calls]
            until(lambda: len(self.group._waiting) == len(calls))
            self.go_on.set()
            return [first, *others]

    def stored(self):
        with self.app.app_context():
            return set(db.session.scalars(select(EndedSession.id_hash)))


@pytest.fixture
def writing(app):
    return Writing(app)


def test_who_comes_while_somebody_writes_is_written_together_with_the_others(writing):
    """And each gets the results of their own."""
    calls = writing.meanwhile(["a"], ["b", "c"], [], ["d"])
    assert [call.result() for call in calls] == [["FIRST"], ["A"], ["B", "C"], [], ["D"]]
    first, second = writing.groups
    assert (first, sorted(second)) == (["first"], ["a", "b", "c", "d"])
    assert writing.stored() == {"first", "a", "b", "c", "d"}


def test_who_comes_alone_is_written_alone(writing):
    writing.go_on.set()
    assert [writing.commit(item) for item in "ab"] == [["A"], ["B"]]
    assert writing.groups == [["a"], ["b"]]


def test_one_that_cannot_be_written_harms_no_other(writing):
    """Of what was written together all is undone, and each is written alone."""
    error = writing.fails["bad"] = ValueError("no")
    calls = writing.meanwhile(["a", "bad"], ["b"])
    assert [call.result() for call in calls] == [["FIRST"], ["A", error], ["B"]]
    assert writing.stored() == {"first", "a", "b"}


def test_a_lock_that_one_of_them_waits_for_in_vain_harms_no_other(writing, monkeypatch):
    monkeypatch.setattr("service.database.writing.PATIENCE_SECONDS", 0)
    locked = pymysql.err.OperationalError(1205, "Lock wait timeout exceeded")
    error = writing.fails["a"] = OperationalError("", {}, locked)
    calls = writing.meanwhile(["a"], ["b"])
    assert [call.result() for call in calls] == [["FIRST"], [error], ["B"]]
    assert writing.stored() == {"first", "b"}


def test_while_the_database_is_gone_nobody_waits_for_it_twice(writing, monkeypatch):
    monkeypatch.setattr("service.database.writing.PATIENCE_SECONDS", 0)
    error = writing.fails["a"] = PoolTimeout()
    calls = writing.meanwhile(["a"], ["b"])
    assert [call.result() for call in calls] == [["FIRST"], [error], [error]]
    assert len(writing.groups) == 2
    assert writing.stored() == {"first"}


def test_a_writer_that_is_stopped_leaves_the_others_to_one_of_them(writing):
    """Say, when its process ends while the others are still let finish."""
    writing.stops.add("a")
    calls = writing.meanwhile(["a"], ["b"], ["c"])
    ended = [call for call in calls if not isinstance(call.exception(), Stopped)]
    assert len(ended) == 3
    assert all(call.result() for call in ended)
    assert writing.stored() == {"first", "a", "b", "c"}
