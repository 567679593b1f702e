"""Ctrl-C and SIGTERM while a server is silent: the program ends soon, says how to go on, and the journal is free."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest

from storage_backend import DatabaseStorage
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import stall
from tests.servers import PostgreSQL
from tests.ssh_proxy import Proxy
from tests.ssh_servers import SSHPlace

# The program waits two seconds; a server's own limits are minutes, and exit codes tell one from the other.
SOON = 20.0

GOES_ON = "what is done stays done, and the same command goes on from there\n"

# What a program of somebody's own would do.
LIBRARY = """
import os, sys
from storage_backend import migrate, open_storage

with open_storage(sys.argv[1]) as source, open_storage(sys.argv[2], create=True) as target:
    migrate(source, target, journal=f"{os.environ['HOME']}/journal")
"""

Process: TypeAlias = "subprocess.Popen[bytes]"


@pytest.fixture
def environment(environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return {
        **environment,
        "HOME": str(tmp_path / "home"),
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    """Starts the program, and leaves none behind."""
    with ExitStack() as stack:

        def begin(*arguments: str | Path, program: Sequence[str] = ("-m", "storage_backend")) -> Process:
            process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Some small objects and a large one."""
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(10):
        (folder / f"{number}").write_bytes(b"%d" % number)
    with (folder / "large").open("wb") as large:
        large.truncate(512 << 20)  # so large that it is still under way when the server falls silent
    return folder


def ended(process: Process, number: int = signal.SIGINT) -> tuple[int, str]:
    """Send a signal; the exit code, and what is on stderr."""
    process.send_signal(number)
    _, err = process.communicate(timeout=SOON)
    return process.returncode, err.decode()


def until(condition: Callable[[], object], process: Process) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def journal_is_free(environment: dict[str, str]) -> bool:
    """Whether the next run could have the journal that the last one left."""
    locks = list(Path(environment["XDG_STATE_HOME"]).glob("storage-backend/journals/*.lock"))
    for path in locks:  # none, if nothing had been recorded
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
    return True


@contextmanager
def silent_listener() -> Iterator[socket.socket]:
    """Takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        yield listener


def s3(port: int, path: str = "bucket/x/") -> str:
    return f"s3://{path}?endpoint_url=http://127.0.0.1:{port}"


def fall_silent(proxy: Proxy, process: Process) -> None:
    """In the middle of the large object."""
    until(lambda: proxy.counts().from_client > 1 << 20, process)
    proxy.black_hole()


def ssh_url(place: SSHPlace, port: int, folder: str = "/x") -> str:
    parameters = {
        "key_filename": place.key_filename,
        "known_hosts": f"{place.known_hosts}-{port}",  # of this test alone
        "agent": "false",
        "host_key_policy": "accept-new",
    }
    return f"ssh://{place.user}@127.0.0.1:{port}{place.base}{folder}?{urllib.parse.urlencode(parameters)}"


@pytest.mark.soak
def test_silent_put(
    start: Callable[..., Process], server: S3Server, source: Path, environment: dict[str, str]
) -> None:
    silent = []

    def choose(request: object) -> object:
        if request.method in {"PUT", "POST"}:  # type: ignore[attr-defined]
            silent.append(request)
            return stall(600)
        return None

    server.faults.choose = choose  # type: ignore[assignment] # the type of the request is of no concern here
    process = start("migrate", source, s3(server.port, "bucket"))
    until(lambda: len(silent) >= 2, process)
    assert not journal_is_free(environment)
    code, err = ended(process)
    assert (code, err) == (130, f"storage-backend: interrupted; {GOES_ON}")
    assert journal_is_free(environment)


def test_ctrl_c_twice_on_a_terminal_ends_it_at_once(
    server: S3Server, source: Path, environment: dict[str, str]
) -> None:
    silent = []

    def choose(request: object) -> object:
        if request.method == "PUT":  # type: ignore[attr-defined]
            silent.append(request)
            return stall(600)
        return None

    server.faults.choose = choose  # type: ignore[assignment] # the type of the request is of no concern here
    leader, follower = pty.openpty()
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "storage_backend",
        "migrate",
        source,
        s3(server.port, "bucket"),
    ]
    # The first terminal that a session's leader opens is the one whose Ctrl-C it gets.
    shell: list[str | Path] = ["sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(follower)]
    with subprocess.Popen([*shell, *command], env=environment, start_new_session=True) as process:
        try:
            until(lambda: silent, process)
            os.write(leader, b"\x03")
            time.sleep(0.3)  # or the two would be one
            assert process.poll() is None
            before = time.monotonic()
            os.write(leader, b"\x03")
            assert process.wait(SOON) == 130
            assert time.monotonic() - before < 1.5  # less than the first one waits
        finally:
            process.kill()
            process.wait()
            os.close(follower)
            shown = b""
            with suppress(OSError):  # EIO: nobody has the other end open any more
                while data := os.read(leader, 65536):
                    shown += data
            os.close(leader)
    # The live line is gone, and the cursor is there.
    last = shown.rpartition(b"\r\x1b[K\x1b[?25h")[2]
    assert last.decode() == f"storage-backend: interrupted; {GOES_ON}".replace("\n", "\r\n")
    assert journal_is_free(environment)


@pytest.mark.soak
def test_silent_ssh_server(
    start: Callable[..., Process], openssh_place: SSHPlace, source: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("paramiko")
    place = openssh_place
    with Proxy(place.host, place.port) as proxy, Proxy(place.host, place.port) as other:
        process = start("migrate", source, ssh_url(place, proxy.port))
        fall_silent(proxy, process)
        library = start(source, ssh_url(place, other.port, "/y"), program=("-c", LIBRARY))
        fall_silent(other, library)
        library.send_signal(signal.SIGINT)
        code, err = ended(process, signal.SIGTERM)
        assert (code, err) == (143, f"storage-backend: terminated; {GOES_ON}")
        assert library.wait(SOON) == -signal.SIGINT
    assert journal_is_free(environment)
    assert not (place.local / "x" / "large").exists()
    assert not (place.local / "y" / "large").exists()


@pytest.mark.soak
def test_silent_postgresql(
    start: Callable[..., Process], postgresql: PostgreSQL, source: Path, environment: dict[str, str]
) -> None:
    environment["PGPASSWORD"] = postgresql.PASSWORD
    port = postgresql.port
    with postgresql.database() as name, Proxy("127.0.0.1", port) as proxy, Proxy("127.0.0.1", port) as other:
        url = f"postgresql://postgres@127.0.0.1:%d/{name}"
        process = start("migrate", source, url % proxy.port)
        fall_silent(proxy, process)
        library = start(source, url % other.port + "#y", program=("-c", LIBRARY))
        fall_silent(other, library)
        library.send_signal(signal.SIGINT)
        code, err = ended(process)
        assert (code, err) == (130, f"storage-backend: interrupted; {GOES_ON}")
        assert library.wait(SOON) == -signal.SIGINT
        assert journal_is_free(environment)
        with DatabaseStorage(postgresql.url(name)) as storage:
            assert not storage.exists("large")
            assert not storage.exists("y/large")


def test_every_command_ends_while_the_server_says_nothing(
    start: Callable[..., Process], source: Path, tmp_path: Path
) -> None:
    from storage_backend import CachedStorage, MemoryStorage

    with CachedStorage(MemoryStorage(), cache_dir=tmp_path / "cache") as cached:
        cached.write("a", b"1")

    def ssh(port: int, path: str = "/x") -> str:
        return f"ssh://me@127.0.0.1:{port}{path}?agent=false&host_key_policy=accept-new&connection_timeout=60"

    def sql(port: int) -> str:
        return f"postgresql://me@127.0.0.1:{port}/x?connect_timeout=60"

    commands: list[Callable[[int], list[object]]] = [
        lambda port: ["migrate", s3(port), tmp_path / "m1"],
        lambda port: ["sync", "--delete", sql(port), tmp_path / "m2"],
        lambda port: ["plan", source, ssh(port)],
        lambda port: ["get", s3(port, "bucket/x"), tmp_path / "got"],
        lambda port: ["put", source / "large", s3(port, "bucket/x")],
        lambda port: ["cp", source / "1", f"{sql(port)}#x"],
        lambda port: ["cat", f"cached+{s3(port, 'bucket/x')}&cache_dir={tmp_path}/cache2"],
    ]
    with ExitStack() as stack:
        under_way = []
        for command in commands:
            listener = stack.enter_context(silent_listener())
            under_way.append((start(*command(listener.getsockname()[1])), listener))
        for _, listener in under_way:
            stack.enter_context(listener.accept()[0])
        time.sleep(0.1)  # for what follows the connection
        for process, _ in under_way:
            process.send_signal(signal.SIGINT)
        for (process, _), command in zip(under_way, commands, strict=True):
            _, err = process.communicate(timeout=SOON)
            assert process.returncode == 130, (command(0), err)
            assert err.decode().startswith("storage-backend: interrupted"), (command(0), err)
            assert err.count(b"\n") == 1, (command(0), err)
    assert not (tmp_path / "got").exists()
