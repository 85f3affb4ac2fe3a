"""Group commit: what several callers have to write at the same moment is one transaction."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from service.database.writing import Transaction, is_passing, release, transact

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Call(Generic[Item, Result]):
    """What one caller wants written, and what came of each item once that was tried."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.outcomes: list[Result | Exception] | None = None


class GroupCommit(Generic[Item, Result]):
    """Writes items by `write(transaction, items)`, which returns a result for each.

    Nobody waits for others to come: who finds nobody writing writes at once, and all who come
    meanwhile are written together next. If `write` raises, unless the database is gone, they are
    written one by one: so that one of them harms no other.
    """

    def __init__(self, write: Callable[[Transaction, Sequence[Item]], Sequence[Result]]) -> None:
        self._write = write
        self._waiting = deque[_Call[Item, Result]]()
        self._turn = threading.Lock()

    def commit(self, items: Sequence[Item]) -> list[Result | Exception]:
        """The result of each item, which is committed then, or the error that its write raised."""
        mine = _Call[Item, Result](items)
        self._waiting.append(mine)
        release()  # so that who waits for the turn holds no connection
        with self._turn:
            if mine.outcomes is None:
                self._write_waiting()
        assert mine.outcomes is not None
        return mine.outcomes

    def _write_waiting(self) -> None:
        calls = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            outcomes = iter(self._outcomes([item for call in calls for item in call.items]))
            for call in calls:
                call.outcomes = [next(outcomes) for _ in call.items]
        finally:  # if this thread is stopped, the next one writes them
            self._waiting.extend(call for call in calls if call.outcomes is None)

    def _outcomes(self, items: Sequence[Item]) -> list[Result | Exception]:
        try:
            return list(transact(self._write, items))
        except Exception as e:
            if len(items) == 1 or is_passing(e):
                return [e] * len(items)
        return [outcome for item in items for outcome in self._outcomes([item])]
