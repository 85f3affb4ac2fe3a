"""A private MariaDB server for the tests: own directory, 127.0.0.1, a free port, stopped by pid."""

import os
import shutil
import socket
import subprocess
import time

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
        subprocess.run(
            [
                shutil.which("mariadb-install-db", path=PATH), "--no-defaults",
                f"--datadir={folder}/data", "--auth-root-authentication-method=normal",
                "--skip-test-db", *self._user(),
            ],
            check=True, stdout=subprocess.DEVNULL,
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
                stdout=log, stderr=log,
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

    def url(self, database):
        return f"mysql://root@127.0.0.1:{self.port}/{database}?reconnect=true"

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def kill(self):
        self.process.kill()
        self.process.wait()
