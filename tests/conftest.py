"""Fixtures of all tests. Nothing beyond pytest is imported at the top."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from tests.s3_server import S3Server
    from tests.s3_servers import BucketPlace, MotoServer, RcloneS3
    from tests.servers import PostgreSQL
    from tests.ssh_servers import Agent, AsyncSSH, OpenSSH, ParamikoSFTP, RcloneSFTP, SSHPlace

M_ARENA_MAX = -8  # mallopt(3)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        action="store_true",
        help="run what takes long, and nothing else: tests marked soak, and the long versions of those that have one",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of the tier that was asked for."""
    soak = config.getoption("--soak")
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        long = item.get_closest_marker("soak") is not None
        has_long_version = "soak" in getattr(item, "fixturenames", ()) or item.get_closest_marker("thorough")
        (chosen if (long or has_long_version if soak else not long) else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


def pytest_configure(config: pytest.Config) -> None:
    """Say which tier runs, and what the process is to be like in which all tests run."""
    try:
        from tests.tiers import Tier
    except ImportError:
        pass  # no hypothesis here: the tests with properties say so themselves
    else:
        Tier.soak = bool(config.getoption("--soak"))
    from tests import leaks
    from tests.servers import fast_place

    config.pluginmanager.register(leaks)
    # Both tiers write tens of thousands of small files, and sync most of them: they waited for the disk half of their time.
    if "TMPDIR" not in os.environ:
        needed = (10 if config.getoption("--soak") else 4) << 30  # the soak tier moves an object of 2 GiB
        os.environ["TMPDIR"] = tempfile.tempdir = fast_place(needed)
    # A shell has what it starts in the background ignore Ctrl-C, and so would all that the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Threads of servers and clients share one heap, since glibc's allocator gives back only what one heap held.
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(M_ARENA_MAX, 1)


def give_memory_back() -> None:
    """Give the system what the allocator keeps of freed memory: each fork copies the map of all that a process has."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


@pytest.fixture(scope="module", autouse=True)
def what_is_there_stays() -> None:
    """What is there when a module begins lives as long as the session: the many tests that collect garbage need not look at it."""
    gc.collect()
    gc.freeze()
    give_memory_back()


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the long version was asked for."""
    return bool(request.config.getoption("--soak"))


def unavailable(reason: str) -> NoReturn:
    """Skip the test that needs a server, or fail it where servers are required."""
    if os.environ.get("STORAGE_BACKEND_REQUIRE_SERVERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, Any, Any]:
    """A fixture that starts a server, or looks for a program, need not say what follows if there is none."""
    return (yield from without_servers())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, Any, Any]:
    """Nor need a test."""
    return (yield from without_servers())


def without_servers() -> Generator[None, Any, Any]:
    from tests.servers import ServerUnavailableError

    try:
        return (yield)
    except ServerUnavailableError as error:
        unavailable(str(error))


@pytest.fixture
def sqlite_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an SQLite file that is yet to be, in a directory of its own."""
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/objects.db"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL | str]:
    """The session's PostgreSQL, or the reason why there is none."""
    try:
        import psycopg  # noqa: F401 - the server is of no use without it

        from tests.servers import PostgreSQL, ServerUnavailableError
    except ImportError as error:
        yield f"no psycopg: {error}"
        return
    try:
        server = PostgreSQL()
    except ServerUnavailableError as error:
        yield str(error)
        return
    yield server
    server.stop()


@pytest.fixture
def postgresql(postgresql_server: PostgreSQL | str) -> PostgreSQL:
    """The session's PostgreSQL."""
    if isinstance(postgresql_server, str):
        unavailable(postgresql_server)
    assert not isinstance(postgresql_server, str)
    return postgresql_server


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    with postgresql.database() as name:
        yield postgresql.url(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, of either kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def moto_server() -> Iterator[MotoServer]:
    """The session's moto."""
    from tests.s3_servers import MotoServer
    from tests.servers import ServerUnavailableError

    try:
        server = MotoServer()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rclone_s3_server() -> Iterator[RcloneS3]:
    """The session's `rclone serve s3`."""
    from tests.s3_servers import RcloneS3
    from tests.servers import ServerUnavailableError

    try:
        server = RcloneS3()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture
def moto_bucket(moto_server: MotoServer) -> Iterator[BucketPlace]:
    """An empty bucket of this test's own, at moto."""
    with moto_server.place() as place:
        yield place


@pytest.fixture
def rclone_bucket(rclone_s3_server: RcloneS3) -> Iterator[BucketPlace]:
    """An empty bucket of this test's own, at rclone."""
    with rclone_s3_server.place() as place:
        yield place


@pytest.fixture(scope="class")
def strict_server() -> Iterator[S3Server]:
    """An S3 server of our own in this process, for a class: it refuses whatever S3 would."""
    from tests.s3_server import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture(scope="class")
def strict_place(strict_server: S3Server) -> BucketPlace:
    """The bucket there that all tests of a class use."""
    from tests.s3_server import ACCESS_KEY, SECRET_KEY
    from tests.s3_servers import BucketPlace

    return BucketPlace(strict_server.url, "bucket", ACCESS_KEY, SECRET_KEY, strict_server.region)


@pytest.fixture
def strict_bucket(
    strict_server: S3Server, strict_place: BucketPlace, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BucketPlace]:
    """The same, empty, where a test may have nothing refused and leave nothing unfinished."""
    _ = monkeypatch  # undone after this: what a dropped writer leaves is aborted in a thread, by the test's credentials
    strict_server.create_bucket(strict_place.bucket)
    yield strict_place
    deadline = time.monotonic() + 60
    while strict_server.uploads(strict_place.bucket) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert strict_server.uploads(strict_place.bucket) == {}
    assert strict_server.rejected == []


@pytest.fixture(scope="session")
def openssh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSH]:
    """The session's `sshd`, with a shell and without this user's start-up files. A test that kills a server makes one of its own."""
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import OpenSSH

    try:
        server = OpenSSH(home=tmp_path_factory.mktemp("home"))
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture
def openssh_place(openssh_server: OpenSSH) -> Iterator[SSHPlace]:
    """An empty directory of this test's own, at `sshd` with a shell."""
    with openssh_server.place() as place:
        yield place


@pytest.fixture(scope="session")
def internal_sftp_server() -> Iterator[OpenSSH]:
    """The session's `sshd` that has SFTP alone, in a root directory of its own."""
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import OpenSSH

    try:
        server = OpenSSH(internal_sftp=True)
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture
def internal_sftp_place(internal_sftp_server: OpenSSH) -> Iterator[SSHPlace]:
    """An empty directory of this test's own, at `sshd` without a shell, in a root directory of its own."""
    with internal_sftp_server.place() as place:
        yield place


@pytest.fixture(scope="session")
def asyncssh_server() -> Iterator[AsyncSSH]:
    """The session's asyncssh server."""
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import AsyncSSH

    try:
        server = AsyncSSH()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture
def asyncssh_place(asyncssh_server: AsyncSSH) -> Iterator[SSHPlace]:
    """An empty directory of this test's own, at an asyncssh server."""
    with asyncssh_server.place() as place:
        yield place


@pytest.fixture(scope="session")
def rclone_sftp_server() -> Iterator[RcloneSFTP]:
    """The session's `rclone serve sftp`."""
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import RcloneSFTP

    try:
        server = RcloneSFTP()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture
def rclone_sftp_place(rclone_sftp_server: RcloneSFTP) -> Iterator[SSHPlace]:
    """An empty directory of this test's own, at `rclone serve sftp`."""
    with rclone_sftp_server.place() as place:
        yield place


@pytest.fixture(scope="session")
def paramiko_sftp_server() -> Iterator[ParamikoSFTP]:
    """The session's SFTP server without extensions and commands."""
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import ParamikoSFTP

    try:
        server = ParamikoSFTP()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture
def paramiko_sftp_place(paramiko_sftp_server: ParamikoSFTP) -> Iterator[SSHPlace]:
    """An empty directory of this test's own, at an SFTP server without extensions and commands."""
    with paramiko_sftp_server.place() as place:
        yield place


@pytest.fixture
def ssh_agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An `ssh-agent` of this test's own, which SSH_AUTH_SOCK leads to, without keys at first."""
    from tests.servers import ServerUnavailableError
    from tests.ssh_servers import Agent

    try:
        agent = Agent()
    except ServerUnavailableError as error:
        unavailable(str(error))
    monkeypatch.setenv("SSH_AUTH_SOCK", agent.socket)
    yield agent
    agent.stop()


@pytest.fixture
def make_ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_ssh_key(kind="ed25519", passphrase=None)`: the file of a new private key, its public half beside it."""
    from tests.ssh_servers import make_key

    return partial(make_key, tmp_path_factory.mktemp("keys"))
