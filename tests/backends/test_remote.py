"""RemoteStorage: the conformance suite over five SSH servers, through a prefix, and over a substitute of paramiko's client."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, cast
from unittest.mock import MagicMock

import pytest
from typing_extensions import override

from storage_backend import BatchError, Capability, RemoteStorage, UnsupportedOperationError
from storage_backend.testing import (
    ConformanceSuite,
    Deleting,
    Listing,
    Moving,
    Processes,
    Reading,
    Scanning,
    Streams,
    Subject,
    Threads,
    Topic,
    Writers,
    Writing,
)
from storage_backend.testing.subject import content_of, everything, fill, named, same
from tests.conftest import unavailable
from tests.servers import ServerUnavailableError
from tests.ssh_servers import RcloneSFTP
from tests.topics import ObjectTopics

if TYPE_CHECKING:
    from storage_backend.backends.remote import SSHConfig
    from tests.ssh_servers import SSHPlace

SUBSTITUTE = {"pickle": "a spawned child that unpickles an instance has paramiko's own client"}
LACKS = {"content_type": "a file has no media type"}
RCLONE = {
    "whole reads": "a handle opens its file by name at the first read, so that attributes and content may be of two files",
}
BARE = {
    "whole reads": "no request replaces a file: a reader may come when the old one is moved aside and its successor not there",
}


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if not path.is_dir()]


def storage_at(place: SSHPlace, **more: Any) -> RemoteStorage:
    return RemoteStorage(cast("SSHConfig", place.config(**more)), place.base)


@pytest.fixture(scope="class")
def place(request: pytest.FixtureRequest) -> Iterator[SSHPlace]:
    """A directory for all tests of a class, at the server that the class names."""
    with request.getfixturevalue(request.cls.server).place() as place:
        yield place


@pytest.fixture(scope="class")
def instance(request: pytest.FixtureRequest, place: SSHPlace) -> Iterator[RemoteStorage]:
    """A storage for all tests of a class."""
    with storage_at(place, **request.cls.options) as storage:
        yield storage


class OverOneConnection(Topic):
    """One connection for all tests of a class, since dialing takes longer than most of them."""

    server: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    lacks: ClassVar[Mapping[str, str]] = LACKS

    @pytest.fixture
    def subject(self, place: SSHPlace, instance: RemoteStorage) -> Subject:
        empty(place.local)
        return Subject(lambda: storage_at(place, **self.options), self.lacks, instance)


def empty(directory: Path) -> None:
    """Remove what is in *directory*, and leave it."""
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class TestOpenSSH(OverOneConnection, ConformanceSuite):
    server = "openssh_server"


@pytest.mark.parametrize("verify", [False, True])
def test_last_of_a_repeated_identifier_stays_whatever_its_size(openssh_place: SSHPlace, verify: bool) -> None:
    small, large = b"small", content_of(1 << 20)
    items = [
        ("a", small),
        ("a", large),
        ("b", large),
        ("b", small),
        ("c", small),
        ("c", large),
        ("c", b"last"),
    ]
    with storage_at(openssh_place) as backend:
        assert backend.write_many(items, verify=verify) == len(items)
        assert same(everything(backend), {"a": large, "b": small, "c": b"last"})


class TestInternalSFTP(OverOneConnection, ObjectTopics, Threads, Processes):
    server = "internal_sftp_server"


class CachingRclone(RcloneSFTP):
    """With rclone's own time for which it keeps a directory in memory.

    With none at all, as the other has it so that changes on the disk are seen at once, each directory that was ever seen
    forgets itself over and over, and with a few dozen of them rclone 1.75 answers nothing any more.
    """

    @override
    def _command(self) -> Sequence[str | Path]:
        return [word for word in super()._command() if not str(word).startswith("--dir-cache-time")]


@pytest.fixture(scope="class")
def rclone_server() -> Iterator[RcloneSFTP]:
    try:
        server = CachingRclone()
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


class TestRclone(ObjectTopics):
    @pytest.fixture
    def subject(self, rclone_server: RcloneSFTP) -> Iterator[Subject]:
        with rclone_server.place() as place:
            yield Subject(make=lambda: storage_at(place), lacks={**LACKS, **RCLONE})


class TestBare(OverOneConnection, ObjectTopics):
    server = "paramiko_sftp_server"
    lacks: ClassVar = {**LACKS, **BARE}


class TestBareThatNeverRemoves:
    """The same server, when nothing may be overwritten in two steps."""

    @pytest.fixture
    def backend(self, paramiko_sftp_place: SSHPlace) -> Iterator[RemoteStorage]:
        with storage_at(paramiko_sftp_place, non_atomic_overwrite=False) as backend:
            yield backend

    def test_overwriting_is_refused_and_the_old_object_stays(
        self, backend: RemoteStorage, paramiko_sftp_place: SSHPlace, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"new")
        fill(backend, "a", "folder/b")
        large = content_of(1 << 20)

        def by_writer() -> None:
            with backend.open("a", "wb") as writer:
                writer.write(large)

        calls: tuple[Callable[[], object], ...] = (
            lambda: backend.write("a", b"new"),
            lambda: backend.write("a", large),
            lambda: backend.write_stream("a", io.BytesIO(b"new")),
            lambda: backend.write_stream("a", io.BytesIO(large), verify=True),
            lambda: backend.upload(source, "a"),
            lambda: backend.copy("folder/b", "a"),
            lambda: backend.move("folder/b", "a"),
            by_writer,
        )
        for call in calls:
            with pytest.raises(UnsupportedOperationError, match="non_atomic_overwrite") as caught:
                call()
            assert isinstance(caught.value, NotImplementedError)
            assert caught.value.identifier == "a"
            assert everything(backend) == {name: named(name) for name in ("a", "folder/b")}
        with pytest.raises(BatchError) as batch:
            backend.write_many([("c", b"c"), ("a", b"new"), ("d", b"d")])
        assert list(batch.value.failures) == ["a"]
        assert isinstance(batch.value.failures["a"], UnsupportedOperationError)
        expected = {"a": named("a"), "folder/b": named("folder/b"), "c": b"c", "d": b"d"}
        assert everything(backend) == expected
        backend.close()
        # Nothing of what was refused is left under a temporary name.
        found = {
            str(path.relative_to(paramiko_sftp_place.local)) for path in files_in(paramiko_sftp_place.local)
        }
        assert found == set(expected)

    def test_new_objects_are_written_and_deleted_ones_again(self, backend: RemoteStorage) -> None:
        for content in (b"one", content_of(1 << 20)):
            assert backend.write("folder/a", content) is True
            assert same(backend.read("folder/a"), content)
            assert backend.move("folder/a", "b") is True
            assert backend.copy("b", "c") is True
            assert same(everything(backend), {"b": content, "c": content})
            assert backend.delete_many(["b", "c"]) == 2

    def test_it_creates_nothing(self, backend: RemoteStorage) -> None:
        assert Capability.CREATE not in backend.capabilities
        with pytest.raises(UnsupportedOperationError):
            backend.create("a", b"x")
        assert backend.list() == []


class LocalFile:
    """A file as paramiko's SFTPFile, by its public methods."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.close = file.close
        self.read = file.read
        self.seek = file.seek
        self.write = file.write

    def stat(self) -> os.stat_result:
        self._file.flush()
        return os.fstat(self._file.fileno())


class LocalFiles:
    """The local disk by the public methods of paramiko's SFTPClient; the errors are the disk's own."""

    def __init__(self) -> None:
        self.close = lambda: None
        self.chmod = os.chmod
        self.lstat = os.lstat
        self.mkdir = os.mkdir
        self.posix_rename = os.replace
        self.remove = os.unlink
        self.rmdir = os.rmdir
        self.stat = os.stat
        self.truncate = os.truncate
        self.utime = os.utime

    def normalize(self, path: str) -> str:
        return os.path.realpath(path)

    def listdir_attr(self, path: str | bytes) -> list[SimpleNamespace]:
        found = []
        with os.scandir(os.fsencode(path)) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone by now
                    facts = entry.stat(follow_symlinks=False)
                    fields = {name: getattr(facts, name) for name in ("st_size", "st_mode", "st_mtime")}
                    found.append(SimpleNamespace(filename=os.fsdecode(entry.name), **fields))
        return found

    def rename(self, old: str, new: str) -> None:
        if os.path.lexists(new):
            raise OSError("Failure")  # without a number, as paramiko says it
        Path(old).rename(new)

    def open(self, path: str, mode: str) -> LocalFile:
        return LocalFile(cast(BinaryIO, open(path, mode.replace("wx", "x"))))  # noqa: PTH123 - as all here


class LocalClient:
    """What takes the place of paramiko.SSHClient, without a server."""

    def connect(self, **options: object) -> None:
        """Nothing to be done."""

    def open_sftp(self) -> LocalFiles:
        return LocalFiles()

    def close(self) -> None:
        """Nothing to be done."""


class TestSubstitute(Reading, Writing, Deleting, Moving, Listing, Scanning, Streams, Writers):
    """A substitute of paramiko.SSHClient."""

    @pytest.fixture
    def subject(self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Subject:
        import paramiko

        monkeypatch.setattr(paramiko, "SSHClient", LocalClient)
        config: SSHConfig = {"user": "ann", "endpoints": [("nas", 22)], "agent": False}
        base = str(tmp_path_factory.mktemp("base"))
        return Subject(make=lambda: RemoteStorage(config, base), lacks={**LACKS, **SUBSTITUTE})


class TestMock:
    """A MagicMock in place of paramiko.SSHClient, as in tests of those who use this package."""

    @pytest.fixture
    def mock(self, monkeypatch: pytest.MonkeyPatch) -> MagicMock:
        import paramiko

        mock = MagicMock()
        monkeypatch.setattr(paramiko, "SSHClient", mock)
        return mock

    def test_instance_is_made_and_its_endpoint_is_the_first(self, mock: MagicMock) -> None:
        config: SSHConfig = {"user": "ann", "endpoints": [("nas", 2222), ("away", 22)], "agent": False}
        with RemoteStorage(config, "/srv/pdfs") as backend:
            assert (backend.host, backend.port) == ("nas", 2222)
            assert backend.user == "ann"
            assert backend.endpoints == [("nas", 2222), ("away", 22)]
            assert backend.connection_timeout == 2.0
            assert backend.remote_base_dir == "/srv/pdfs"
            mock.return_value.connect.assert_called_once()
            options = mock.return_value.connect.call_args.kwargs
            assert (options["hostname"], options["port"], options["username"]) == ("nas", 2222, "ann")
            assert options["timeout"] == 2.0
            assert {"banner_timeout", "auth_timeout", "transport_factory"} <= set(options)
        mock.return_value.close.assert_called()

    def test_next_endpoint_is_taken_where_the_first_refuses(self, mock: MagicMock) -> None:
        def connect(*, hostname: str, **_: object) -> None:
            if hostname == "nas":
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

        mock.return_value.connect.side_effect = connect
        config: SSHConfig = {"user": "ann", "endpoints": [("nas", 22), ("away", 2200)], "agent": False}
        with RemoteStorage(config, "/srv/pdfs") as backend:
            assert (backend.host, backend.port) == ("away", 2200)

    def test_no_connection_is_made_before_it_is_asked_for(self, mock: MagicMock) -> None:
        config: SSHConfig = {"user": "ann", "endpoints": [("nas", 22)], "agent": False}
        backend = RemoteStorage(config, "/srv/pdfs", auto_connect=False)
        assert (backend.host, backend.port) == (None, None)
        mock.return_value.connect.assert_not_called()
        backend.check_connection()
        assert backend.host == "nas"
        mock.return_value.connect.assert_called_once()
        backend.close()
