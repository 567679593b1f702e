"""Batches that go to the server as a tar stream: what is stored, what each error leaves, and that nothing is left over."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from tests.tiers import few

pytest.importorskip("paramiko")

from storage_backend import (
    AlreadyExistsError,
    BatchError,
    IntegrityError,
    InvalidIdentifierError,
    NotAFileError,
    NotFoundError,
    ObjectInfo,
    QuotaExceededError,
    RemoteStorage,
)
from storage_backend.backends.remote import sftp_contents, tar_download, tar_upload
from storage_backend.backends.remote.connection import SSHConnection
from storage_backend.backends.remote.settings import SSHConfig
from storage_backend.backends.remote.shell import Shell
from storage_backend.backends.remote.tar_unpacker import Unpacker
from storage_backend.testing import Subject
from storage_backend.testing.subject import everything, same
from storage_backend.testing.topics.batches import Batches
from tests.backends.local_ways import small_disk
from tests.conftest import unavailable
from tests.servers import ServerUnavailableError
from tests.ssh_pairs import pair
from tests.ssh_proxy import Direction
from tests.ssh_servers import OpenSSH, SSHPlace, shell_script

LONG_AGO = datetime(2020, 5, 17, 12, 30, tzinfo=UTC)
MANY = 3 * tar_upload.MIN_OBJECTS


def storage_at(place: SSHPlace, **more: Any) -> RemoteStorage:
    return RemoteStorage(cast(SSHConfig, place.config(**more)), place.base)


def items(count: int = MANY, text: str = "") -> dict[str, bytes]:
    return {
        f"d{number % 7}/e/f{number}": f"{text}{number}".encode() * (number % 50) for number in range(count)
    }


def left_over(place: SSHPlace) -> list[str]:
    return [str(path) for path in place.local.rglob(".~sb-*")]


class Told:
    """How often packing or unpacking was asked for, and how often it was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        self.asked = self.done = 0
        asked = getattr(SSHConnection, method)

        def counted(connection: SSHConnection, *arguments: Any, **options: Any) -> Any:
            self.asked += 1
            found = asked(connection, *arguments, **options)
            self.done += found is not None
            return found

        monkeypatch.setattr(SSHConnection, method, counted)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Of batches that are written."""
    return Told(monkeypatch, "unpack")


@pytest.fixture
def told_read(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Of batches that are read."""
    return Told(monkeypatch, "pack")


class TestBatches(Batches):
    """The conformance suite's batches, all of them packed, however few."""

    @pytest.fixture
    def subject(self, openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch) -> Subject:
        monkeypatch.setattr(tar_upload, "MIN_OBJECTS", 1)
        monkeypatch.setattr(tar_download, "MIN_OBJECTS", 1)
        return Subject(
            make=lambda: storage_at(openssh_place), lacks={"content_type": "a file has no media type"}
        )


@pytest.mark.parametrize("verify", [False, True])
def test_objects_are_stored_as_they_are(openssh_place: SSHPlace, told: Told, verify: bool) -> None:
    given = items()
    given["large"] = os.urandom(sftp_contents.SMALL + 1)
    given["long/" + "n" * 200 + "/" + "m" * 255] = b"long"
    with closing(storage_at(openssh_place)) as backend:
        assert backend.write_many(given.items(), verify=verify) == len(given)
        assert everything(backend) == given
        # Over what is there now, too.
        other = items(text="other")
        assert backend.write_many(other.items(), verify=verify) == len(other)
        assert everything(backend) == {**given, **other}
    assert told.asked == told.done == 2
    assert left_over(openssh_place) == []


def test_asyncssh_unpacks_too(asyncssh_place: SSHPlace, told: Told) -> None:
    with closing(storage_at(asyncssh_place)) as backend:
        assert backend.write_many(items().items(), verify=True) == MANY
        assert everything(backend) == items()
    assert told.done == 1
    assert left_over(asyncssh_place) == []


def test_few_objects_start_no_command(openssh_place: SSHPlace, told: Told) -> None:
    with closing(storage_at(openssh_place)) as backend:
        backend.write_many(items(tar_upload.MIN_OBJECTS - 1).items())
        assert everything(backend) == items(tar_upload.MIN_OBJECTS - 1)
    assert told.asked == 0


def test_base_directory_comes_to_be(openssh_place: SSHPlace, told: Told) -> None:
    with closing(
        RemoteStorage(cast(SSHConfig, openssh_place.config()), f"{openssh_place.base}/new/base")
    ) as backend:
        backend.write_many(items().items())
        assert everything(backend) == items()
    assert told.done == 1


def test_times_are_kept_where_they_are_given(openssh_place: SSHPlace, told: Told) -> None:
    dated = [
        (ObjectInfo(f"dated/{name}", len(content), LONG_AGO), content) for name, content in items().items()
    ]
    before = ObjectInfo("before 1970", 1, datetime(1960, 1, 1, tzinfo=UTC))
    mixed = [pair for both in zip(dated, items().items(), strict=True) for pair in both]
    with closing(storage_at(openssh_place)) as backend:
        assert backend.write_many([*mixed, (before, b"x")]) == 2 * MANY + 1
        for info in backend.scan("dated/"):
            assert info.modified == LONG_AGO
            assert backend.hooks.last_written(info.identifier) == info
        for name in [*items(), "before 1970"]:
            modified = backend.stat(name).modified
            assert modified is not None
            assert modified.year >= 2026
    assert told.done == 2


def test_files_have_the_mode_that_they_had_and_others_that_of_new_ones(
    openssh_place: SSHPlace, told: Told
) -> None:
    names = list(items())
    with closing(storage_at(openssh_place)) as backend:
        backend.write_many(items().items())
        backend.write("alone", b"x")
        modes = {0o600, 0o755, 0o444, 0o640}
        for name, mode in zip(names, modes, strict=False):
            (openssh_place.local / name).chmod(mode)
        backend.write_many(items(text="new").items())
        new = (openssh_place.local / "alone").stat().st_mode
        found = [(openssh_place.local / name).stat().st_mode for name in names]
        assert {mode & 0o777 for mode in found[: len(modes)]} == modes
        assert set(found[len(modes) :]) == {new}
        assert everything(backend) == {**items(text="new"), "alone": b"x"}
    assert told.done == 2


def test_each_obstacle_is_its_own_objects_error(openssh_place: SSHPlace, told: Told, tmp_path: Path) -> None:
    local = openssh_place.local
    outside = tmp_path / "outside"
    outside.write_bytes(b"outside")
    names = list(items())
    (local / "d0" / "e").mkdir(parents=True)
    (local / names[0]).symlink_to(outside)  # replaced itself
    (local / names[7]).mkdir()  # empty: it goes
    (local / names[14]).mkdir()
    (local / names[14] / "child").write_bytes(b"child")
    given: dict[str, bytes] = {
        **items(),
        "-rf": b"1",
        "-": b"2",
        "a\nb/c\n": b"3",
        "x" * 300: b"4",
        "..": b"5",
    }
    with closing(storage_at(openssh_place)) as backend:
        with pytest.raises(BatchError) as caught:
            backend.write_many(given.items())
        failures = caught.value.failures
        assert {name: type(error) for name, error in failures.items()} == {
            names[14]: AlreadyExistsError,
            "x" * 300: InvalidIdentifierError,
            "..": InvalidIdentifierError,
        }
        expected = {name: content for name, content in given.items() if name not in failures}
        assert everything(backend) == {**expected, f"{names[14]}/child": b"child"}
        assert told.done == 1, "none of these has others written one by one"
        assert outside.read_bytes() == b"outside"
        assert not (local / names[0]).is_symlink()
        # A file where a directory is wanted: tar fails as a whole.
        with pytest.raises(BatchError) as caught:
            backend.write_many({**items(text="new"), "-/x": b"6"}.items())
        assert {name: type(error) for name, error in caught.value.failures.items()} == {
            names[14]: AlreadyExistsError,
            "-/x": AlreadyExistsError,
        }
        new = {name: content for name, content in items(text="new").items() if name != names[14]}
        assert everything(backend) == {**expected, f"{names[14]}/child": b"child", **new}
        # It is tried again with the next.
        (told.asked, told.done) = (0, 0)
        backend.write_many({f"z{name}": content for name, content in items().items()}.items())
        assert (told.asked, told.done) == (1, 1)
    assert left_over(openssh_place) == []


def test_last_of_a_repeated_identifier_stays_across_groups(
    openssh_place: SSHPlace, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_upload, "MAX_OBJECTS", tar_upload.MIN_OBJECTS)
    given = [
        *items().items(),
        *items(text="again").items(),
        ("d0/e/f0", b"last"),
        ("d1/e/f1", b"z" * (1 << 20)),
    ]
    with closing(storage_at(openssh_place)) as backend:
        assert backend.write_many(given) == len(given)
        assert everything(backend) == dict(given)
    assert told.done >= 6
    assert left_over(openssh_place) == []


def test_no_more_is_remembered_than_is_under_way(
    openssh_place: SSHPlace, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_upload, "MAX_OBJECTS", tar_upload.MIN_OBJECTS)
    held = most = 0

    class Content(bytes):
        def __init__(self, _: bytes) -> None:
            nonlocal held, most
            held += 1
            most = max(most, held)

        def __del__(self) -> None:
            nonlocal held
            held -= 1

    given = items(20 * tar_upload.MIN_OBJECTS)
    with closing(storage_at(openssh_place)) as backend:
        assert backend.write_many((name, Content(content)) for name, content in given.items()) == len(given)
    assert told.done == 20
    assert held == 0
    assert tar_upload.MIN_OBJECTS <= most <= (tar_upload.GROUPS + 1) * tar_upload.MIN_OBJECTS


def test_source_that_raises_leaves_whole_objects_only(
    openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_upload, "MAX_OBJECTS", tar_upload.MIN_OBJECTS)

    def source() -> Iterator[tuple[str, bytes]]:
        yield from items().items()
        raise ZeroDivisionError

    with closing(storage_at(openssh_place)) as backend:
        with pytest.raises(ZeroDivisionError):
            backend.write_many(source())
        assert everything(backend).items() <= items().items()
    assert left_over(openssh_place) == []


@pytest.mark.parametrize("after", few([20_000, 0, 2_000, 150_000, 300_000], 1))
@pytest.mark.parametrize("direction", few(["from_client", "from_server"], 1))
def test_connection_that_is_cut_loses_nothing(
    openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch, direction: Direction, after: int
) -> None:
    monkeypatch.setattr(tar_upload, "MAX_OBJECTS", 2 * tar_upload.MIN_OBJECTS)
    given = {name: content * 20 for name, content in items(8 * tar_upload.MIN_OBJECTS).items()}
    with pair(openssh_place) as ways, ways.storage() as backend:
        backend.write("a", b"1")
        ways.lose_first_after(after if direction == "from_client" else after // 10, direction)
        assert backend.write_many(given.items(), verify=True) == len(given)
        assert everything(backend) == {**given, "a": b"1"}


# What a server's tools may do instead of what they should.
LIES = {
    "tar does nothing": ("tar", "cat >/dev/null"),
    "tar ends at once": ("tar", "exit 0"),
    "tar fails": ("tar", "exit 1"),
    "tar fails at its end": ("tar", '{real} "$@"; exit 2'),
    "tar loses the end": ("tar", 'head -c 60000 | {real} "$@" 2>/dev/null; cat >/dev/null; exit 0'),
    "stat says nothing": ("stat", "exit 0"),
    "stat prints too much": ("stat", "yes | head -c 3000000"),
    "stat makes no sense": ("stat", "printf 'x y z\\0%.0s' $(seq 1000)"),
    "stat fails": ("stat", "exit 1"),
    "xargs does nothing": ("xargs", "exit 0"),
    "sha256sum fails": ("sha256sum", "exit 1"),
    "sha256sum makes no sense": ("sha256sum", "echo x"),
}


@pytest.mark.parametrize("way", few(LIES, 2))
def test_tools_that_fail_mean_writing_by_sftp(
    lying: Callable[[str, str], SSHPlace], told: Told, way: str
) -> None:
    place = lying(*LIES[way])
    with closing(storage_at(place)) as backend:
        for text in ("first", "second"):
            assert backend.write_many(items(text=text).items(), verify=True) == MANY
            assert everything(backend) == items(text=text)
    assert told.done == 0
    assert left_over(place) == []


def test_directories_that_others_make_at_the_same_time_are_no_obstacle(
    lying: Callable[[str, str], SSHPlace], told: Told, tmp_path: Path
) -> None:
    # GNU tar's mkdir says that there is one now, and tar gives that file up.
    failed = tmp_path / "failed"
    place = lying(
        "tar",
        f'{{real}} "$@"; r=$?; [ -e {failed} ] && exit $r; : >{failed}; '
        "echo 'tar: ./d1/e/f1: Cannot open: No such file or directory' >&2; exit 2",
    )
    with closing(storage_at(place)) as backend:
        assert backend.write_many(items().items(), verify=True) == MANY
        assert everything(backend) == items()
    assert failed.exists()
    assert (told.asked, told.done) == (1, 1)
    assert left_over(place) == []


@pytest.mark.parametrize("way", ["other bytes", "another digest"])
def test_what_is_not_what_was_sent_is_never_published(
    lying: Callable[[str, str], SSHPlace], told: Told, way: str
) -> None:
    if way == "other bytes":
        place = lying(
            "tar",
            '{real} "$@" && find . -name ".~sb-*-[0-9]*" -size +1 -exec sh -c \'printf X | dd of="$1" conv=notrunc status=none\' sh {{}} \\;',
        )
    else:
        place = lying("sha256sum", '{real} "$@" | sed -z "s/^.{{8}}/00000000/" -E')
    given = dict.fromkeys(items(), b"x" * 2000)
    with closing(storage_at(place)) as backend:
        backend.write(next(iter(given)), b"old")
        with pytest.raises(BatchError) as caught:
            backend.write_many(given.items(), verify=True)
        assert {type(error) for error in caught.value.failures.values()} == {IntegrityError}
        assert set(caught.value.failures) == set(given)
        assert everything(backend) == {next(iter(given)): b"old"}
    assert told.done == 1
    assert left_over(place) == []


def test_full_disk_stops_the_batch_and_leaves_nothing_of_ours(openssh_place: SSHPlace, told: Told) -> None:
    folder = openssh_place.local / "disk"
    folder.mkdir()
    given = {name: os.urandom(20_000) for name in items()}
    with small_disk(folder):
        config = cast(SSHConfig, openssh_place.config())
        with closing(RemoteStorage(config, f"{openssh_place.base}/disk")) as backend:
            with pytest.raises(QuotaExceededError):
                backend.write_many(given.items())
            assert everything(backend).items() <= given.items()
            assert left_over(openssh_place) == []


@pytest.mark.parametrize(
    "kind",
    [
        *("noisy", "csh-like", "busybox"),
        *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("hung", "mute", "slow")),
    ],
)
def test_shell_of_another_kind_is_no_obstacle(tmp_path: Path, kind: str, told: Told, told_read: Told) -> None:
    try:
        server = OpenSSH(command_wrapper=shell_script(tmp_path, kind))
    except ServerUnavailableError as error:
        unavailable(str(error))
    try:
        with server.place() as place, closing(storage_at(place)) as backend:
            assert backend.write_many(items().items(), verify=True) == MANY
            assert dict(backend.read_many(items())) == items()
            assert told.done == (kind in {"noisy", "slow"})
            assert (told_read.done > 0) == (kind in {"noisy", "slow"})
            assert left_over(place) == []
    finally:
        server.stop()


def test_no_session_to_spare_means_writing_by_sftp(told: Told) -> None:
    try:
        server = OpenSSH(extra=["MaxSessions 1"])
    except ServerUnavailableError as error:
        unavailable(str(error))
    try:
        with server.place() as place, closing(storage_at(place)) as backend:
            assert backend.write_many(items().items(), verify=True) == MANY
            assert everything(backend) == items()
            assert (told.asked, told.done) == (1, 0)
    finally:
        server.stop()


@pytest.mark.soak
def test_many_threads_pack_at_once(openssh_place: SSHPlace, told: Told) -> None:
    with closing(storage_at(openssh_place)) as backend:

        def write(number: int) -> int:
            given = {f"{number}/{name}": content for name, content in items().items()}
            return backend.write_many(given.items(), verify=bool(number % 2))

        with ThreadPoolExecutor(12) as pool:
            assert list(pool.map(write, range(24))) == [MANY] * 24
        expected = {f"{number}/{name}": content for number in range(24) for name, content in items().items()}
        assert everything(backend) == expected
    assert told.done == 24


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Unpacker]:
    """The commands that unpack, as they are started."""
    found: list[Unpacker] = []
    start = Shell.unpacker

    def noted(shell: Shell, directory: bytes) -> Unpacker:
        found.append(start(shell, directory))
        return found[-1]

    monkeypatch.setattr(Shell, "unpacker", noted)
    return found


@pytest.mark.soak
def test_one_command_unpacks_batch_after_batch(
    openssh_place: SSHPlace, told: Told, started: list[Unpacker]
) -> None:
    with closing(storage_at(openssh_place)) as backend:
        for text in ("first", "second", "third"):
            backend.write_many(items(text=text).items(), verify=text == "second")
            assert everything(backend) == items(text=text)
        # It goes where the base directory is, though its own is gone by now.
        shutil.rmtree(openssh_place.local)
        backend.write_many(items(text="again").items())
        assert everything(backend) == items(text="again")
        # What cannot be done does not end it.
        (openssh_place.local / "file").write_bytes(b"x")
        with pytest.raises(BatchError):
            backend.write_many({**items(), "file/x": b"x"}.items())
        backend.write_many(items(text="last").items())
        assert everything(backend) == {**items(text="last"), "file": b"x"}
    assert (told.asked, told.done) == (6, 5)
    assert len(started) == 1


def test_command_that_the_server_has_ended_is_started_again(
    openssh_place: SSHPlace, told: Told, started: list[Unpacker]
) -> None:
    with closing(storage_at(openssh_place)) as backend:
        backend.write_many(items().items())
        channel = started[0].command._channel
        channel.shutdown_write()  # its shell reads no further line, and ends
        channel.status_event.wait(30)
        backend.write_many(items(text="new").items())
        assert everything(backend) == items(text="new")
    assert told.done == 2
    assert len(started) == 2


def test_commands_end_with_the_connection(openssh_place: SSHPlace, started: list[Unpacker]) -> None:
    with closing(storage_at(openssh_place)) as backend:
        backend.write_many(items().items())
        token = started[0]._token
        assert running_with(token)
    deadline = time.monotonic() + 30
    while running_with(token) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running_with(token)


def running_with(word: bytes) -> list[str]:
    """The processes that have *word* among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word in path.read_bytes():
                found.append(path.parent.name)
    return found


def filled(place: SSHPlace) -> dict[str, bytes]:
    """Many objects, on the server's disk."""
    for name, content in items().items():
        (place.local / name).parent.mkdir(parents=True, exist_ok=True)
        (place.local / name).write_bytes(content)
    return items()


def test_batch_is_read_by_tar(openssh_place: SSHPlace, told_read: Told) -> None:
    given = filled(openssh_place)
    with closing(storage_at(openssh_place)) as backend:
        assert dict(backend.read_many(given)) == given
        twice = sorted([*given, *given])
        assert sorted(backend.read_many(twice)) == [(name, given[name]) for name in twice]
        assert told_read.done == told_read.asked > 0
        told_read.asked = 0
        assert dict(backend.read_many(list(given)[: tar_download.MIN_OBJECTS - 1])).items() <= given.items()
        assert told_read.asked == 0


@pytest.mark.soak
def test_what_cannot_be_read_is_its_own_objects_error(
    openssh_place: SSHPlace, told_read: Told, tmp_path: Path
) -> None:
    given = filled(openssh_place)
    local = openssh_place.local
    (local / "link").symlink_to("d0/e/f0")
    (local / "second name").hardlink_to(local / "d1/e/f1")
    (local / "dangling").symlink_to("nowhere")
    (local / "directory").mkdir()
    os.mkfifo(local / "pipe")
    names = [
        *given,
        "link",
        "second name",
        "dangling",
        "directory",
        "pipe",
        "absent",
        "a/b",
        "..",
        "-",
        "a\nb",
    ]
    # The server says nothing of a pipe that nobody writes to.
    with closing(storage_at(openssh_place, io_timeout=2.0)) as backend:
        found: dict[str, bytes] = {}
        with pytest.raises(BatchError) as caught:
            found.update(backend.read_many(names))
        assert found == {**given, "link": given["d0/e/f0"], "second name": given["d1/e/f1"]}
        assert {name: type(error) for name, error in caught.value.failures.items()} == {
            "dangling": NotFoundError,
            "directory": NotAFileError,
            "pipe": NotAFileError,
            "absent": NotFoundError,
            "a/b": NotFoundError,
            "..": InvalidIdentifierError,
            "-": NotFoundError,
            "a\nb": NotFoundError,
        }
    assert told_read.done == told_read.asked


def test_large_objects_are_not_held_in_groups(
    openssh_place: SSHPlace, told_read: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = filled(openssh_place)
    for number in range(3):
        given[f"large{number}"] = os.urandom(3 << 20)
        (openssh_place.local / f"large{number}").write_bytes(given[f"large{number}"])
    monkeypatch.setattr(tar_download, "LIMIT", 4 << 20)
    with closing(storage_at(openssh_place)) as backend:
        assert same(dict(backend.read_many(given)), given)
        assert same(dict(backend.read_many(sorted(given))), given)
    assert told_read.done < told_read.asked


def evil(*members: tuple[str, bytes, bytes]) -> bytes:
    """An archive of (name, kind, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


REGULAR = tarfile.REGTYPE
EVIL = {
    "an absolute name": evil(("/tmp/canary", REGULAR, b"x")),
    "a way out": evil(("../canary", REGULAR, b"x")),
    "a way out from a directory": evil(("./d0/../../canary", REGULAR, b"x")),
    "a symbolic link": evil(("./d0/e/f0", tarfile.SYMTYPE, b"")),
    "a hard link": evil(("./d0/e/f0", tarfile.LNKTYPE, b"")),
    "an extra member": evil(("./d0/e/f0", REGULAR, b""), ("./other", REGULAR, b"x")),
    "a member twice": evil(("./d0/e/f0", REGULAR, b""), ("./d0/e/f0", REGULAR, b"x")),
    "no end": evil(("./d0/e/f0", REGULAR, b"x" * 2000))[:1024],
    "nothing": b"",
    "noise": b"x" * 5000,
    "more after the end": evil() + b"x",
}


@pytest.mark.parametrize("way", few(EVIL, 2))
def test_tar_of_a_hostile_server_is_refused(
    lying: Callable[[str, str], SSHPlace], told_read: Told, tmp_path: Path, way: str
) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(EVIL[way])
    place = lying("tar", f"cat >/dev/null; cat {archive}")
    given = filled(place)
    with closing(storage_at(place)) as backend:
        assert dict(backend.read_many(given)) == given
    assert told_read.done == 0


@pytest.mark.soak
@pytest.mark.parametrize(
    "way", ["exit 1", '{real} "$@"; exit 1', '{real} "$@"; echo "tar: ?" >&2; exit 2', "exit 0"]
)
def test_tar_that_says_it_failed_is_not_believed(
    lying: Callable[[str, str], SSHPlace], told_read: Told, way: str
) -> None:
    place = lying("tar", way)
    given = filled(place)
    with closing(storage_at(place)) as backend:
        assert dict(backend.read_many(given)) == given
    assert told_read.done == 0


@pytest.mark.soak
@pytest.mark.parametrize("after", few([10_000, 0, 300, 100_000, 400_000]))
def test_connection_that_is_cut_while_a_batch_is_read_loses_nothing(
    openssh_place: SSHPlace, after: int
) -> None:
    given = {name: content * 20 for name, content in filled(openssh_place).items()}
    for name, content in given.items():
        (openssh_place.local / name).write_bytes(content)
    with pair(openssh_place) as ways, ways.storage() as backend:
        backend.check_connection()
        ways.lose_first_after(after, "from_server")
        assert dict(backend.read_many(given)) == given


def test_reading_may_end_early(openssh_place: SSHPlace) -> None:
    given = filled(openssh_place)
    with closing(storage_at(openssh_place)) as backend:
        for count in (1, 5, 130):
            reading = backend.read_many(given)
            assert len([next(reading) for _ in range(count)]) == count
            cast(Any, reading).close()
        assert not [thread.name for thread in threading.enumerate() if "fetching" in thread.name]
        assert dict(backend.read_many(given)) == given
