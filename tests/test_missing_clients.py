"""Without a client library: one error that says what to install, whatever stands between the caller and the backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import (
    CachedStorage,
    CompressedStorage,
    DatabaseStorage,
    EncryptedStorage,
    FallbackStorage,
    LocalStorage,
    MemoryStorage,
    MissingClientError,
    PrefixedStorage,
    ReadOnlyStorage,
    RemoteStorage,
    RetryingStorage,
    S3Storage,
    StorageBackend,
    migrate,
)

Without = Callable[..., None]

# What has no client in turn: the library, how to ask for it, and what the message says to install.
NEEDS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "ssh": (
        "paramiko",
        lambda _: RemoteStorage({"user": "ann", "endpoints": [("127.0.0.1", 9)]}, "/x"),
        "paramiko",
    ),
    "s3": ("boto3", lambda _: S3Storage("bucket").read("a"), "boto3"),
    "diskcache": (
        "diskcache",
        lambda path: CachedStorage(MemoryStorage(), path / "cache", engine="diskcache"),
        "diskcache",
    ),
    "encryption": (
        "cryptography",
        lambda _: EncryptedStorage(MemoryStorage(), bytes(32)).write("a", b""),
        "cryptography",
    ),
    "compression": (
        "zstandard",
        lambda _: CompressedStorage(MemoryStorage()).write("a", b""),
        "'storage-backend[compression]'",
    ),
    "sql": (
        "psycopg",
        lambda _: DatabaseStorage("postgresql://me@host/db").list(),
        "'storage-backend[sql]'",
    ),
}

WRAPPERS: dict[str, Callable[[StorageBackend, Path], StorageBackend]] = {
    "cached": CachedStorage,
    "retrying": lambda backend, _: RetryingStorage(
        backend, sleep=lambda _: pytest.fail("it was tried again")
    ),
    "fallback": lambda backend, _: FallbackStorage(backend, MemoryStorage(), on_error="fallback"),
    "compressed": lambda backend, _: CompressedStorage(backend),
    "encrypted": lambda backend, _: EncryptedStorage(backend, bytes(32)),
    "prefixed": lambda backend, _: PrefixedStorage(backend, "p"),
    "read-only": lambda backend, _: ReadOnlyStorage(backend),
}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    """`without(*names)`: these modules, and what is in them, can no longer be imported."""

    def remove(*libraries: str) -> None:
        for name in {*libraries, *sys.modules}:
            if name.partition(".")[0] in libraries:
                monkeypatch.setitem(sys.modules, name, None)

    return remove


@pytest.mark.parametrize("need", NEEDS)
def test_what_to_install_is_said_and_nothing_made(need: str, without: Without, tmp_path: Path) -> None:
    library, use, install = NEEDS[need]
    without(library)
    with pytest.raises(MissingClientError) as caught:
        use(tmp_path)
    message = str(caught.value)
    assert message.endswith(f": pip install {install}")
    assert library in message.removesuffix(install)
    assert isinstance(caught.value.__cause__, ImportError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_no_wrapper_takes_it_for_a_passing_fault_or_an_absence(
    wrapper: str, without: Without, tmp_path: Path
) -> None:
    without("boto3", "botocore")
    storage = WRAPPERS[wrapper](S3Storage("bucket"), tmp_path)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: storage.read("a"),
        "exists": lambda: storage.exists("a"),
        "open": lambda: storage.open("a"),
        "list": storage.list,
        "read_many": lambda: list(storage.read_many(["a", "b"])),
    }
    for name, call in calls.items():
        with pytest.raises(MissingClientError, match="pip install boto3"):
            pytest.fail(f"{name} gave {call()!r}")


def test_a_migration_stops_at_once(without: Without, tmp_path: Path) -> None:
    without("boto3", "botocore")
    source = LocalStorage(tmp_path / "source")
    source.write_many((str(number), b"x") for number in range(3))
    with pytest.raises(MissingClientError):
        migrate(source, S3Storage("bucket"))


@pytest.mark.parametrize(
    "arguments",
    [["ls", "postgresql://me@host/db"], ["migrate", ".", "postgresql://me@host/db"]],
    ids=lambda arguments: arguments[0],
)
def test_the_program_says_it_in_a_line(arguments: list[str], tmp_path: Path) -> None:
    program = "import sys; sys.modules['psycopg'] = None; from storage_backend.cli import main; main()"
    (tmp_path / "file").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 7
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("storage-backend: postgresql://me@host/db needs psycopg ")
    assert line.endswith("pip install 'storage-backend[sql]'")
