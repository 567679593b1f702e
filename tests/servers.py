"""Real servers for the tests, each started once a session and stopped by its own process id."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here, not between fork and exec

PATIENCE = 60.0  # seconds for a server to come up or go down


class ServerUnavailableError(Exception):
    """A server cannot be started here; the message says why."""


class PostgreSQL:
    """A server of our own, on a Unix socket and a free port of 127.0.0.1, without fsync.

    Over the socket everybody is trusted; over TCP the user `postgres` has the password `PASSWORD`.

    Raises:
        ServerUnavailableError: there is no PostgreSQL, or it does not start.
    """

    PASSWORD = "s3cret/p@ss#word"

    def __init__(self) -> None:
        self._user = _other_user()
        # Short, since a socket's path has 107 bytes at most; not in pytest's directories, which others cannot enter.
        self.directory = Path(tempfile.mkdtemp(prefix="sb-pg-", dir=fast_place(4 << 30)))
        self._names = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.directory.chmod(0o755)
            self._data = self.directory / "data"
            if self._user is not None:
                shutil.chown(self.directory, self._user)
            self._programs = _programs(self.directory, self._user)
            self.port = free_port()
            self._initialise()
            self.start()
        except BaseException:
            self.stop()
            raise

    def url(self, database: str) -> str:
        """The URL of a database, over the socket."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={self.port}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """A new, empty database; its name."""
        name = f"test{next(self._names)}"
        self.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement as the superuser."""
        import psycopg

        place = f"host={self.directory} port={self.port} user=postgres dbname={database}"
        with psycopg.connect(place, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def start(self) -> None:
        """Start the server, and return once it answers."""
        import psycopg

        log = (self.directory / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data],
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - nothing but one system call
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise ServerUnavailableError(
                        f"PostgreSQL did not start: {(self.directory / 'log').read_text()[-2000:]}"
                    ) from None
                time.sleep(0.02)
            else:
                return

    def halt(self) -> None:
        """Break all connections at once and stop, as after a crash; `start` begins with a recovery."""
        self._end(signal.SIGQUIT)

    def stop(self) -> None:
        """Stop the server and remove its files."""
        self._end(signal.SIGINT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _initialise(self) -> None:
        secret = self.directory / "password"
        secret.write_text(self.PASSWORD)
        _run(
            [
                *(self._programs / "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8"),
                *("--locale=C", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256"),
                f"--pwfile={secret}",
            ],
            self._user,
        )
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "full_page_writes": "off",
            "max_connections": 200,
            "deadlock_timeout": "100ms",
            "shared_buffers": "64MB",
            "max_wal_size": "2GB",
            "lc_messages": "C",
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


def program(name: str, install: str, *places: str) -> str:
    """The path of a program.

    Args:
        name: its.
        install: the command that installs it.
        places: directories that are looked into before those of PATH.

    Raises:
        ServerUnavailableError: it is not installed.
    """
    found = shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise ServerUnavailableError(f"{name} is not installed: {install}")
    return found


def end_with_parent(number: int = signal.SIGQUIT) -> None:
    """In the child: be told to stop when a test run is killed, and does not stop its servers itself."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, number)


def fast_place(needed: int) -> str:
    """A directory for temporary files, in memory where *needed* bytes of that are available."""
    memory = Path("/dev/shm")
    with suppress(OSError, StopIteration):  # not Linux
        with Path("/proc/meminfo").open() as file:
            available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
        if min(shutil.disk_usage(memory).free, available) >= needed and os.access(memory, os.W_OK):
            return str(memory)
    return tempfile.gettempdir()


def _other_user() -> str | None:
    """PostgreSQL does not run as root: the user that it runs as instead, None for this one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise ServerUnavailableError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _programs(directory: Path, user: str | None) -> Path:
    """The directory of `initdb` and `postgres`: Debian's, those on PATH, or the wheel's."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("initdb")
    found = [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    wheel = importlib.util.find_spec("pgserver")
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin")
    reasons = []
    for place in found:
        if not (place / "initdb").exists() or not (place / "postgres").exists():
            continue
        try:
            _run([place / "postgres", "--version"], user)
        except (OSError, ServerUnavailableError) as error:
            # The other user may not enter the place of the wheel.
            if "pgserver" not in str(place):
                reasons.append(f"{place}: {error}")
                continue
            shutil.copytree(place.parent, directory / "install", symlinks=True)
            return directory / "install" / "bin"
        return place
    raise ServerUnavailableError(
        "; ".join(reasons)
        or "PostgreSQL is not installed: apt-get install postgresql, or pip install pgserver"
    )


def _version(programs: Path) -> float:
    try:
        return float(programs.parent.name)
    except ValueError:
        return 0.0


def _run(command: list[Path | str], user: str | None) -> None:
    group = None if user is None else pwd.getpwnam(user).pw_gid
    done = subprocess.run(
        command, user=user, group=group, env=_environment(), cwd="/", capture_output=True, check=False
    )
    if done.returncode:
        raise ServerUnavailableError(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")


def _environment() -> dict[str, str]:
    """Ours, without what would lead libpq elsewhere."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
