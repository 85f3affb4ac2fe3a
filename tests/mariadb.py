"""A private MariaDB server for the tests: own directory, 127.0.0.1, a free port, stopped by pid."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pymysql


def missing():
    """Why MariaDB cannot be started here; None when it can."""
    return None if shutil.which("mariadbd", path=PATH) else "mariadbd is not installed"


PATH = os.environ.get("PATH", "") + ":/usr/sbin"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class MariaDB:
    """One server; `options` are added to its command line."""

    def __init__(self, folder, *options):
        self.folder, self.options, self.port = folder, options, free_port()
        self.process = None
        # Servers that start at the same time would delete each other's files in /tmp
        self.env = os.environ | {"TMPDIR": str(folder)}
        subprocess.run(
            [
                shutil.which("mariadb-install-db", path=PATH), "--no-defaults",
                f"--datadir={folder}/data", "--auth-root-authentication-method=normal",
                "--skip-test-db", *self._user(),
            ],
            check=True, stdout=subprocess.DEVNULL, env=self.env,
        )  # fmt: skip

    def _user(self):
        return ["--user=root"] if os.getuid() == 0 else []

    def start(self, *options):
        """Start it, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    shutil.which("mariadbd", path=PATH), "--no-defaults", *self._user(),
                    f"--datadir={self.folder}/data", f"--socket={self.folder}/socket",
                    f"--pid-file={self.folder}/pid", f"--port={self.port}",
                    "--bind-address=127.0.0.1", "--skip-log-bin", "--max-connections=200",
                    *self.options, *options,
                ],
                stdout=log, stderr=log, env=self.env,
            )  # fmt: skip
        while True:
            try:
                with self.connect():
                    return self
            except pymysql.err.OperationalError:
                if self.process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def connect(self, database=None):
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True
        )

    def run(self, sql, database=None):
        with self.connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall()

    def row_lock_waits(self):
        """How many transactions wait for a row.

        Not from innodb_trx: that is a copy, which is not renewed while it is read every 100 ms.
        """
        [(_, waits)] = self.run("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'")
        return int(waits)

    def url(self, database):
        return f"mysql://root@127.0.0.1:{self.port}/{database}?reconnect=true"

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()


GALERA = "/usr/lib/galera/libgalera_smm.so"


def galera_missing():
    """Why a Galera cluster cannot be started here; None when it can."""
    if not Path(GALERA).exists():
        return "galera-4 is not installed"
    return missing() or (None if shutil.which("rsync") else "rsync is not installed")


class GaleraNode(MariaDB):
    """A node of a cluster on loopback; `ports` are those of all nodes' group communication.

    root's rsync would serve the data as "nobody": a root that tests lets "mysql" run the node.
    """

    def __init__(self, folder, n, ports):
        folder.mkdir()
        if os.getuid() == 0:
            shutil.chown(folder, "mysql")
        state_transfer = free_port()
        super().__init__(
            folder, "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2",
            "--innodb-flush-log-at-trx-commit=2",  # a node that dies gets the rest from the others
            "--wsrep-on=ON", f"--wsrep-provider={GALERA}", "--wsrep-sst-method=rsync",
            f"--wsrep-node-name=node{n}", "--wsrep-node-address=127.0.0.1",
            f"--wsrep-sst-receive-address=127.0.0.1:{state_transfer}",
            "--wsrep-cluster-address=gcomm://" + ",".join(f"127.0.0.1:{port}" for port in ports),
            f"--wsrep-provider-options=base_port={ports[n]};"
            f"gmcast.listen_addr=tcp://127.0.0.1:{ports[n]};"
            f"ist.recv_addr=127.0.0.1:{free_port()};gcache.size=64M",
        )  # fmt: skip

    def _user(self):
        return ["--user=mysql"] if os.getuid() == 0 else []

    def wait_until_synced(self):
        state = "SHOW STATUS LIKE 'wsrep_local_state_comment'"
        while True:
            with contextlib.suppress(pymysql.err.OperationalError):
                if self.run(state)[0][1] == "Synced":
                    return
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.1)


def cluster(folder, size):
    """A running Galera cluster of `size` nodes in `folder`, into which every user may look."""
    folder.chmod(0o755)
    ports = [free_port() for _ in range(size)]
    nodes = [GaleraNode(folder / f"node{n}", n, ports) for n in range(size)]
    try:
        for node in nodes:
            node.start(*(["--wsrep-new-cluster"] if node is nodes[0] else []))
            node.wait_until_synced()
    except BaseException:
        for node in nodes:
            if node.process:
                node.kill()
        raise
    return nodes
