"""What happens at the same time: other calls, and the statements that show how far they are."""

import contextlib
import threading

from sqlalchemy import event

from service.database.engine import db


def in_background(call):
    """Start `call` in a thread, as another request would run; gives a function that waits for
    its result, with `is_done()`."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()

    def result():
        thread.join()
        return results[0]

    result.is_done = lambda: bool(results)
    return result


@contextlib.contextmanager
def listening(app, **listeners):
    """Let the listeners (by event) hear of what the database is asked, while the block runs."""
    with app.app_context():
        engine = db.engine
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


@contextlib.contextmanager
def statements(app, part):
    """Gives a function that waits until so many more SQL statements with `part` have begun."""
    begun = threading.Semaphore(0)

    def note(_connection, _cursor, statement, *_):
        if part in statement:
            begun.release()

    def wait(n=1):
        for _ in range(n):
            assert begun.acquire(timeout=60)

    with listening(app, before_cursor_execute=note):
        yield wait


def answer(response):
    return response.status_code, response.json.get("message", response.json.get("data"))


def in_threads(n, call):
    threads = [threading.Thread(target=call, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
