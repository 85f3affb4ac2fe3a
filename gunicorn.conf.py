"""How gunicorn serves the app: `gunicorn wsgi:app`; the numbers come from config.py."""

import socket
import struct
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from config import Config
from service import logs


class Worker(ThreadWorker):
    """gthread that, when told to stop, first accepts every connection that waits for it.

    Upstream's keeps the listening socket open until its last answer is out: whoever connects
    meanwhile is reset. Here they are answered, and whoever comes later is refused at once, which
    makes a router try another dyno.
    """

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive:
            for listener in self.sockets:
                before = -1
                while before != self.nr_conns or waiting(listener):
                    before = self.nr_conns
                    self.accept(listener)
                listener.close()


def waiting(listener: Any) -> int:
    """How many connections wait to be accepted; 0 if the system does not tell.

    After an accept() that found none, other threads may run for milliseconds before this one
    continues, and whoever connects then would be reset.
    """
    if not hasattr(socket, "TCP_INFO") or listener.family == socket.AF_UNIX:
        return 0
    # tcpi_unacked is the length of a listening socket's queue (Linux, tcp_get_info())
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack_from("I", info, 24)[0])


settings = Config.from_environment()

bind = f"0.0.0.0:{settings.PORT}"
worker_class = Worker  # gthread
workers = settings.WEB_CONCURRENCY
threads = settings.THREADS
# A call waits for the main server, or for a webhook's receiver, and then answers
timeout = int(2 * settings.UPSTREAM_TIMEOUT + settings.WEBHOOK_TIMEOUT) + 30
graceful_timeout = timeout
# Longer than a PaaS router keeps its connections, so that the router closes them first
keepalive = 95
max_requests = 10000
max_requests_jitter = 1000
control_socket_disable = True

# A gateway's GET may carry a long SMS
limit_request_line = 8190

accesslog = "-"
# No query string: it holds users' values; the formatter masks keys in the path
access_log_format = (
    'event=request method=%(m)s path="%(U)s" status=%(s)s us=%(D)s id=%({x-request-id}o)s'
)
logconfig_dict = logs.dict_config(settings.LOG_LEVEL)
