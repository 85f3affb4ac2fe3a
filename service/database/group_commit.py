"""Group commit: what several callers have to write at the same moment is one transaction."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from service.database.writing import Transaction, is_gone, release, transact

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Call(Generic[Item, Result]):
    """What one caller wants written, and what came of each item once that was tried."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.outcomes: list[Result | Exception] | None = None
        self.is_apart = False  # its group failed

    @property
    def is_over(self) -> bool:
        return self.is_apart or self.outcomes is not None


class GroupCommit(Generic[Item, Result]):
    """Writes items by `write(transaction, items)`, which returns a result for each.

    Nobody waits for others to come: who finds nobody writing writes at once, and all who come
    meanwhile are written together next. If `write` raises, unless the database is gone, each of
    them writes their own: so that one item, or a lock that it waits for, harms no other.
    """

    def __init__(self, write: Callable[[Transaction, Sequence[Item]], Sequence[Result]]) -> None:
        self._write = write
        self._waiting: list[_Call[Item, Result]] = []
        self._is_writing = False
        self._changed = threading.Condition()

    def commit(self, items: Sequence[Item]) -> list[Result | Exception]:
        """The result of each item, which is committed then, or the error that its write raised."""
        mine = _Call[Item, Result](items)
        release()  # so that who waits holds no connection
        with self._changed:
            self._waiting.append(mine)
            while self._is_writing and not mine.is_over:
                self._changed.wait()
            group: list[_Call[Item, Result]] = []
            if not mine.is_over:
                group, self._waiting = self._waiting, group
                self._is_writing = True
        if group:
            self._write_group(group)
        return self.commit_apart(items) if mine.outcomes is None else mine.outcomes

    def commit_apart(self, items: Sequence[Item]) -> list[Result | Exception]:
        """The same, in no group: all of them together, or else one by one."""
        try:
            return list(transact(self._write, items))
        except Exception as e:
            if len(items) == 1 or is_gone(e):
                return [e] * len(items)
        return [outcome for item in items for outcome in self.commit_apart([item])]

    def _write_group(self, group: Sequence[_Call[Item, Result]]) -> None:
        items = [item for call in group for item in call.items]
        try:
            results = iter(transact(self._write, items))
            for call in group:
                call.outcomes = [next(results) for _ in call.items]
        except Exception as e:
            for call in group:
                if len(items) == 1 or is_gone(e):
                    call.outcomes = [e] * len(call.items)
                else:
                    call.is_apart = True
        finally:  # if this thread is stopped, the next one writes them
            with self._changed:
                self._waiting += [call for call in group if not call.is_over]
                self._is_writing = False
                self._changed.notify_all()
