"""Real servers for the tests, on loopback: one that answers as told, one that speaks raw bytes."""

import contextlib
import socket
import threading
import time

from werkzeug.serving import WSGIRequestHandler, make_server

from service.sandbox import create_sandbox
from tests.conftest import SYSTEM_KEY


def until(condition):
    """Wait for what must come; a test that waits for what does not is ended by its time limit."""
    while not (value := condition()):
        time.sleep(0.01)
    return value


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_):
        pass

    def run_wsgi(self):
        try:
            super().run_wsgi()
        finally:
            # Werkzeug leaves an answer open, a file perhaps, whose client has gone meanwhile
            with contextlib.suppress(KeyError, AttributeError):
                self.environ["tests.answer"].close()


@contextlib.contextmanager
def serving(wsgi_app):
    """Serve `wsgi_app` while the block runs; gives its base URL.

    The service itself is served until its last call is over: one whose client has gone still holds
    a database connection.
    """

    def noted(environ, start_response):
        environ["tests.answer"] = answer = wsgi_app(environ, start_response)
        return answer

    server = make_server("127.0.0.1", 0, noted, threaded=True, request_handler=_Quiet)
    server.daemon_threads = "sqlalchemy" not in getattr(wsgi_app, "extensions", {})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def raw_server(talk):
    """Call `talk(connection, stopped)` in a thread for each connection; gives the base URL."""
    stopped = threading.Event()
    threads = []
    listener = socket.create_server(("127.0.0.1", 0))

    def run(connection):
        with connection, contextlib.suppress(OSError):
            talk(connection, stopped)

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if stopped.is_set():
                connection.close()
                return
            threads.append(threading.Thread(target=run, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname()).close()
        accepting.join()
        listener.close()
        for thread in threads:
            thread.join()


def sandbox(**options):
    """The sandbox main server, with the tests' system key."""
    return serving(create_sandbox(SYSTEM_KEY, **options))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(connection, stopped, data):
    """One byte every 50 ms: each well within any socket timeout."""
    for byte in data:
        if stopped.wait(0.05):
            return
        connection.sendall(bytes([byte]))
    stopped.wait()


def silence(connection, stopped):
    stopped.wait()


def header_drip(connection, stopped):
    drip(connection, stopped, b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 10000)


def body_drip(connection, stopped):
    connection.sendall(HEAD + b"Content-Length: 10000\r\n\r\n")
    drip(connection, stopped, b"x" * 10000)


def body_drip_until_close(connection, stopped):
    connection.sendall(HEAD + b"\r\n")
    drip(connection, stopped, b'{"status":"success","data":{}}' * 100)


def chunk_drip(connection, stopped):
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    drip(connection, stopped, b"1\r\nx\r\n" * 1000)


def informational_drip(connection, stopped):
    while not stopped.wait(0.05):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")


def redirect_drip(connection, stopped):
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 10000\r\n\r\n")
    drip(connection, stopped, b"x" * 10000)


# Peers that never come to a final status line; and those whose body takes minutes after it
NO_STATUS = [silence, header_drip, informational_drip]
NO_BODY = [body_drip, body_drip_until_close, chunk_drip, redirect_drip]
SLOW = NO_STATUS + NO_BODY
