"""How gunicorn serves the app: `gunicorn wsgi:app`; the numbers come from config.py."""

# First of all: what is imported before keeps the blocking sockets and locks
from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import shutil  # noqa: E402
import socket  # noqa: E402
import tempfile  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

# Where the processes leave what they count; before the service is imported
os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts = tempfile.mkdtemp(prefix="otp-metrics-")

from prometheus_client import multiprocess  # noqa: E402

from config import Config, ConfigError  # noqa: E402
from service import logs  # noqa: E402
from service.commands import checks  # noqa: E402
from service.sms import words  # noqa: E402
from service.web_worker import WebWorker, affordable  # noqa: E402

try:
    settings = Config.from_environment()
except ConfigError as e:
    raise SystemExit(f"Error: {e}") from None
words.index()  # in the memory that all processes share
connections = affordable(settings.WORKER_CONNECTIONS)
# The processes read the settings anew, and divide what there is
os.environ["WORKER_CONNECTIONS"] = str(connections)

# IPv6 and IPv4
bind = f"[::]:{settings.PORT}" if socket.has_dualstack_ipv6() else f"0.0.0.0:{settings.PORT}"
worker_class = WebWorker  # gevent
workers = settings.WEB_CONCURRENCY
worker_connections = connections
# A call waits for the main server, or for a webhook's receiver, and then answers
timeout = int(2 * settings.UPSTREAM_TIMEOUT + settings.WEBHOOK_TIMEOUT) + 30
graceful_timeout = timeout
# Longer than a PaaS router keeps its connections, so that the router closes them first
keepalive = 95
max_requests = 10000
max_requests_jitter = 1000
control_socket_disable = True

# No header of a caller sets SCRIPT_NAME or the like, or the scheme: TRUSTED_PROXIES alone decides
forwarder_headers = ""
forwarded_allow_ips = ""
secure_scheme_headers: dict[str, str] = {}

# A gateway's GET may carry a long SMS
limit_request_line = 8190

# The application logs each request, by its route
accesslog = None
logconfig_dict = logs.dict_config(settings.LOG_LEVEL)


def post_worker_init(worker: Any) -> None:
    """The first of the processes tells what is misconfigured; calls do not wait for it."""
    if worker.age == 1:
        gevent.spawn(checks.log_local, worker.application)


def child_exit(server: Any, worker: Any) -> None:
    """What a process that has ended was doing is no longer counted."""
    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    shutil.rmtree(counts, ignore_errors=True)
