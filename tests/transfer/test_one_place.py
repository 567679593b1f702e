"""One place under two names: a transfer deletes nothing there, and says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeAlias, cast

import pytest

from storage_backend import (
    AccessDeniedError,
    CachedStorage,
    ConfigurationError,
    DatabaseStorage,
    FallbackStorage,
    LocalStorage,
    MemoryStorage,
    PrefixedStorage,
    ReadOnlyStorage,
    RemoteStorage,
    RetryingStorage,
    S3Storage,
    StorageBackend,
    TransferReport,
    migrate,
    sync,
)
from storage_backend.backends.remote import SSHConfig
from storage_backend.hooks import Hooks
from storage_backend.testing import FaultyStorage
from storage_backend.wrappers.base import Wrapper, WrapperHooks
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.seven import Seven
from tests.ssh_servers import SSHPlace
from tests.transfer.samples import contents, memory, put
from tests.transfer.test_ssh import url_of

OBJECTS = {f"{number}/{number:02}": b"%d" % number for number in range(30)}
Pair: TypeAlias = tuple[StorageBackend, StorageBackend]


def filled(storage: StorageBackend) -> StorageBackend:
    for name, content in OBJECTS.items():
        put(storage, name, content)
    return storage


def moved(source: StorageBackend, target: StorageBackend, tmp_path: Path) -> TransferReport | str:
    """What a migration that deletes its source came to: its report, or why it was refused."""
    try:
        return migrate(source, target, journal=tmp_path / "journal", delete_source=True, flush=False)
    except ConfigurationError as error:
        return str(error)


def nothing_was_deleted(pair: Pair, tmp_path: Path) -> str:
    """Migrate *pair*, which is one place: why nothing was deleted."""
    source, target = pair
    before = contents(source)
    assert OBJECTS.items() <= before.items()
    found = moved(source, target, tmp_path)
    assert contents(source).items() >= before.items()
    assert not [name for name in [*source.list(), *target.list()] if "marker" in name]
    if isinstance(found, str):
        return found
    assert found.source_deleted == 0
    assert not found.ok
    (reason,) = found.refused
    return reason


def remote(place: SSHPlace, host: str, base: str | Path) -> RemoteStorage:
    port = place.port
    # "localhost" has no line among the known hosts, which other tests have too.
    config = place.config(
        endpoints=[[host, port]], host_key_policy="accept-new", known_hosts=f"{place.known_hosts}-{host}"
    )
    return RemoteStorage(cast(SSHConfig, config), str(base))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(
    "kind", ["local to ssh", "ssh to local", "two hosts", "a link", "cached", "inside", "around"]
)
def test_the_same_files_through_a_server(
    kind: str, openssh_place: SSHPlace, tmp_path: Path, stack: ExitStack
) -> None:
    base = openssh_place.local
    filled(LocalStorage(base))
    (tmp_path / "link").symlink_to(base)
    there = stack.enter_context(remote(openssh_place, openssh_place.host, base))
    pairs: dict[str, Callable[[], Pair]] = {
        "local to ssh": lambda: (LocalStorage(base), there),
        "ssh to local": lambda: (there, LocalStorage(base)),
        "two hosts": lambda: (there, stack.enter_context(remote(openssh_place, "localhost", base))),
        "a link": lambda: (
            there,
            stack.enter_context(remote(openssh_place, openssh_place.host, tmp_path / "link")),
        ),
        "cached": lambda: (
            stack.enter_context(CachedStorage(LocalStorage(base), tmp_path / "cache")),
            RetryingStorage(there),
        ),
        "inside": lambda: (there, LocalStorage(base / "1")),
        "around": lambda: (filled(LocalStorage(base / "1")), there),
    }
    pair = pairs[kind]()
    assert "one place" in nothing_was_deleted(pair, tmp_path)


def test_the_same_bucket_through_two_host_names(tmp_path: Path) -> None:
    with S3Server() as server:
        server.create_bucket("bucket")

        def at(host: str) -> S3Storage:
            return S3Storage(
                "bucket",
                endpoint_url=f"http://{host}:{server.port}",
                region="us-east-1",
                access_key=ACCESS_KEY,
                secret_key=SECRET_KEY,
            )

        with at("127.0.0.1") as one, at("localhost") as other:
            filled(one)
            assert "one place" in nothing_was_deleted((one, other), tmp_path)


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_the_same_database_file(kind: str, tmp_path: Path) -> None:
    one = filled(DatabaseStorage(f"sqlite:///{tmp_path}/a.db"))
    one.close()
    if kind == "symlink":
        (tmp_path / "b.db").symlink_to("a.db")
    else:
        (tmp_path / "b.db").hardlink_to(tmp_path / "a.db")
    pair = (one, RetryingStorage(DatabaseStorage(f"sqlite:///{tmp_path}/b.db")))
    assert "same place" in nothing_was_deleted(pair, tmp_path)


@pytest.mark.parametrize("inside", [False, True])
def test_the_same_folder_mounted_twice(inside: bool, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    filled(LocalStorage(one))
    other.mkdir()
    mounted = subprocess.run(
        ["mount", "--bind", one / "1" if inside else one, other], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a bind mount needs the right to mount: {mounted.stderr.strip()}")
    try:
        put(LocalStorage(other), "more", b"x")
        before = contents(LocalStorage(one))
        found = moved(LocalStorage(one), LocalStorage(other), tmp_path)
        assert contents(LocalStorage(one)).items() >= before.items()
        assert "one place" in found.refused[0] if isinstance(found, TransferReport) else "same place" in found
    finally:
        subprocess.run(["umount", "--lazy", other], check=True)


def test_two_views_of_one_instance(tmp_path: Path) -> None:
    inner = filled(MemoryStorage())
    for number in range(3):
        put(inner, f"p/{number}", b"p")
    p = PrefixedStorage(inner, "p")
    pairs: list[Pair] = [
        (RetryingStorage(inner), FaultyStorage(inner)),
        (PrefixedStorage(inner, "p"), PrefixedStorage(RetryingStorage(inner), "p")),
        (inner, p),
        (p, PrefixedStorage(inner, "p/q")),
        (CachedStorage(inner, tmp_path / "cache"), RetryingStorage(inner)),
        (inner, FallbackStorage(MemoryStorage(), ReadOnlyStorage(inner))),
    ]
    before = contents(inner)
    for source, target in pairs:
        found = moved(source, target, tmp_path)
        assert isinstance(found, str), (source, target)
        assert "same place" in found or "lies inside" in found
    assert contents(inner) == before
    assert sync(p, PrefixedStorage(inner, "q")).ok


class Door(Wrapper):
    """Another road to what is within: nothing tells that it is the same."""

    def __init__(self, backend: StorageBackend, beneath: str = "") -> None:
        super().__init__(PrefixedStorage(backend, beneath) if beneath else backend)

    @property
    def hooks(self) -> Hooks:
        return Nowhere(self)


class Nowhere(WrapperHooks):
    def places(self, prefix: str = "") -> Iterator[tuple[object, ...]]:
        yield (object(),)


@pytest.mark.parametrize("trash", [None, "trash"])
def test_extras_that_are_the_other_sides_objects_stay(trash: str | None) -> None:
    """The source lies inside the target: all of it looks like what the source lacks."""
    inner = memory({"sub/a": b"1", "sub/b/c": b"2", "other": b"3"})
    before = contents(inner)
    report = sync(Door(inner, "sub"), Door(inner), delete=True, trash=trash)
    assert report.deleted == 0
    assert "one place" in report.refused[0]
    assert contents(inner).items() >= before.items()
    # The target inside the source.
    inner = memory({"sub/a": b"1", "sub/old": b"2", "a": b"1"})
    report = sync(Door(inner), Door(inner, "sub"), delete=True, trash=trash)
    assert report.deleted == 0
    assert inner.exists("sub/old")


def test_places_that_only_look_alike_are_told_apart(tmp_path: Path) -> None:
    """Each folder of the target has what the source begins with; some of them more than can be asked for one by one."""
    source = memory({"index": b"1", "z": b"2"})
    for count in (3, 300):
        target = memory({f"{number}/index": b"" for number in range(count)})
        report = sync(ReadOnlyStorage(Door(source)), Door(target), delete=True, max_delete=1000)
        # Nothing can be written to the source, and names do not tell.
        assert "cannot be proven" in report.refused[0]
        report = sync(Door(source), Door(target), delete=True, max_delete=1000)
        assert (report.deleted, report.ok) == (count, True)
        assert contents(target) == contents(source) == {"index": b"1", "z": b"2"}


def test_a_source_that_may_only_be_read_is_no_hindrance_where_names_tell() -> None:
    source, target = memory({"a": b"1"}), memory({"extra": b"2"})
    assert sync(ReadOnlyStorage(source), target, delete=True).deleted == 1


def test_within_a_pattern(tmp_path: Path) -> None:
    inner = memory({"docs/a": b"1", "docs/docs/old": b"2", "docs/docs/a": b"1"})
    report = sync(Door(inner), Door(inner, "docs"), pattern="docs/**", delete=True)
    assert report.deleted == 0
    report = migrate(
        Door(inner), Door(inner), pattern="docs/**", journal=tmp_path / "j", delete_source=True, flush=False
    )
    assert report.source_deleted == 0
    assert contents(inner).keys() >= {"docs/a", "docs/docs/old"}


def test_a_union_that_shows_the_source_through_the_target(tmp_path: Path) -> None:
    """As a mount of two folders over each other: what is written there goes to the one, what is in the other shows too."""
    lower = filled(MemoryStorage())
    upper = Door(FallbackStorage(MemoryStorage(), lower))
    assert "one place" in nothing_was_deleted((lower, upper), tmp_path)


def test_no_proof_no_deletion(tmp_path: Path) -> None:
    class Choosy(Seven):
        def write(self, identifier: str, content: bytes) -> bool:
            if "marker" in identifier:
                raise AccessDeniedError("only what ends in a number")
            return super().write(identifier, content)

    source = filled(MemoryStorage())
    assert "only what ends" in nothing_was_deleted((source, Choosy()), tmp_path)


def test_a_marker_that_a_killed_run_left_is_no_object_and_goes(tmp_path: Path) -> None:
    class Dying(Wrapper):
        def delete(self, identifier: str) -> bool:
            if "marker" in identifier:
                raise KeyboardInterrupt
            return super().delete(identifier)

    source, target = filled(MemoryStorage()), MemoryStorage()
    with pytest.raises(KeyboardInterrupt):
        moved(source, Dying(target), tmp_path)
    (left,) = [name for name in target.list() if "marker" in name]
    assert contents(source) == OBJECTS
    other = MemoryStorage()
    assert sync(target, other, delete=True).ok
    assert not other.exists(left)
    found = moved(source, target, tmp_path)
    assert isinstance(found, TransferReport)
    assert found.ok
    assert contents(target) == OBJECTS
    assert source.list() == []


def test_nothing_is_written_beside_the_objects_where_nothing_is_deleted(tmp_path: Path) -> None:
    source, target = LocalStorage(tmp_path / "one"), LocalStorage(tmp_path / "two")
    filled(source)
    put(source, "x", b"1")
    calls: list[str] = []

    class Watched(Wrapper):
        def write(self, identifier: str, content: object) -> bool:
            calls.append(identifier)
            return super().write(identifier, content)  # type: ignore[arg-type]  # as given

    assert sync(Watched(source), Watched(target), delete=True).ok
    assert calls == []
    assert set(target.list()) == set(source.list())


def test_mv_and_the_two_sides_of_a_fallback_delete_no_object_that_is_one_with_its_copy(
    openssh_place: SSHPlace, tmp_path: Path
) -> None:
    path = openssh_place.local / "folder" / "x"
    path.parent.mkdir()
    path.write_bytes(b"only here")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    command = [sys.executable, "-m", "storage_backend", "mv", str(path), url_of(openssh_place, "folder/x")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "one object under two names" in done.stderr
    assert path.read_bytes() == b"only here"
    inner = LocalStorage(path.parent)
    pair = FallbackStorage(Door(inner), Door(inner))
    for move in (pair.migrate_to_primary, pair.migrate_to_secondary):
        with pytest.raises(ConfigurationError, match="one object under two names"):
            move("x", True)
    assert contents(inner) == {"x": b"only here"}
    apart = FallbackStorage(memory({"x": b"1", "y": b"2"}), MemoryStorage())
    assert all(apart.migrate_to_secondary(name, delete_primary=True) for name in ("x", "y"))
    assert contents(apart.secondary) == {"x": b"1", "y": b"2"}
