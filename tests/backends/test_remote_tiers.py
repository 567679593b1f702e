# Names that are not UTF-8 are bytes, which pathlib does not take:
# ruff: noqa: PTH101, PTH102, PTH103, PTH114, PTH118, PTH120, PTH119, PTH123, PTH211
"""The same tree by the server's shell, by SFTP alone and from the disk: the same objects, errors and reports.

Where RemoteStorage differs from LocalStorage, on purpose:

* Time: SFTP has whole seconds, rounded down, and 32 bits of them (draft-ietf-secsh-filexfer-02, section 5);
  LocalStorage has the nearest microsecond, so that the last half of one may carry into the next second.
* Links: the server follows them wherever they lead, as for whoever has an account there; LocalStorage never leaves its base
  directory, so a link outside is an object here and reported there.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    AccessDeniedError,
    InvalidIdentifierError,
    LocalStorage,
    NotAFileError,
    NotFoundError,
    ObjectInfo,
    PrefixedStorage,
    RemoteStorage,
    StorageBackend,
    StorageError,
    sync,
)
from storage_backend.identifiers import decode, encode
from storage_backend.testing.subject import same
from tests.conftest import unavailable
from tests.ssh_servers import OpenSSH, SSHPlace, sftp_server
from tests.tiers import few

# Names whose order shows whether directories take their place as "name/".
NAMES = (
    b"a",
    b"a!",
    b"a-b",
    b"a.b",
    b"a0",
    b"a b",
    b"ab",
    b"b",
    b"\xff",
    b"\xc3\xa9",
    b"new\nline",
    b".h",
    b"z" * 200,
)
RESERVED = (b".~sb-x", b".~sb-")
SEEDS = range(4)
PREFIXES = (
    *(
        "",
        "a",
        "a/",
        "a/b",
        "b/",
        "a-",
        "a.",
        "a0",
        "\udcff",
        "é/",
        "z",
        "new\n",
        ".h/",
        "no such",
        "no/such/",
    ),
    *(
        "/",
        "//",
        "/etc/",
        "/etc",
        "../",
        "..",
        "a/../",
        "a/..",
        "./",
        ".",
        "a//",
        "a//b",
        "\0",
        "a\0/b",
        "\ud800",
        "\ud800/a",
    ),
    *(
        ".~sb-",
        ".~sb-x/",
        ".~sb-x",
        "link",
        "link/",
        "looping/",
        "broken/",
        "outside/",
        "fifo/",
        "f/",
        "f/x",
        "x" * 300 + "/",
    ),
)
PATTERNS = (
    *(
        "*",
        "**",
        "*/*",
        "a*",
        "a/*",
        "a/**",
        "**/a",
        "**/*b",
        "[ab]/*",
        "?",
        "??",
        "*/*/*",
        "a/b/**",
        "**/a/**",
        "no/such",
    ),
    *(
        "new\n*",
        ".h*",
        "[!a]*",
        "\udcff",
        "é*",
        "link/*",
        "link",
        "li*/**",
        "outside/*",
        "**/link/*",
        "*line/**",
    ),
)


def grow(root: Path, seed: int) -> None:
    """A tree of all that a disk may hold, of a few hundred entries."""
    chosen = random.Random(seed)
    top = os.fsencode(root)
    outside = os.fsencode(root.parent / f"{root.name}-outside")
    os.mkdir(outside)
    for name in (b"f", b"secret"):
        _file(os.path.join(outside, name), chosen)

    def fill(directory: bytes, depth: int) -> None:
        for name in chosen.sample(NAMES, chosen.randrange(2 if depth else 9, len(NAMES))):
            path = os.path.join(directory, name)
            kind = chosen.random()
            if kind < 0.35 and depth < 4:
                os.mkdir(path)
                if kind < 0.3:
                    fill(path, depth + 1)
            elif kind < 0.8:
                _file(path, chosen)
            else:
                _odd(path, chosen, top, outside)
        for name in RESERVED[: chosen.randrange(3)]:
            if chosen.random() < 0.5:
                _file(os.path.join(directory, name), chosen)
            else:
                os.mkdir(os.path.join(directory, name))
                _file(os.path.join(directory, name, b"inside"), chosen)

    fill(top, 0)
    os.makedirs(os.path.join(top, b"d/e/empty"))
    _file(os.path.join(top, b"d/e/f"), chosen)
    _file(os.path.join(top, b"f"), chosen)
    os.symlink(b"d/e", os.path.join(top, b"link"))
    os.symlink(b"f", os.path.join(top, b"to-f"))
    os.symlink(os.path.join(top, b"f"), os.path.join(top, b"to-f-absolute"))
    os.symlink(outside, os.path.join(top, b"outside"))
    os.symlink(os.path.join(outside, b"f"), os.path.join(top, b"outside-f"))
    os.symlink(b"looping", os.path.join(top, b"looping"))
    os.symlink(b"nothing", os.path.join(top, b"broken"))
    os.mkfifo(os.path.join(top, b"fifo"))
    _listen(os.path.join(top, b"socket"))
    # More than 1,024 bytes in all: no identifier.
    deep = os.path.join(top, b"deep")
    for _ in range(6):
        deep = os.path.join(deep, b"y" * 200)
    os.makedirs(os.path.dirname(deep))
    _file(deep, chosen)


def _file(path: bytes, chosen: random.Random) -> None:
    with open(path, "wb") as file:
        file.write(chosen.randbytes(chosen.choice((0, 1, 100, 5000))))
    os.chmod(path, chosen.choice((0o600, 0o644, 0o755)))
    second = chosen.choice((0, 1, 1_000_000_000, 1_700_000_000, (1 << 31) - 1))
    os.utime(path, ns=(0, second * 10**9 + chosen.choice((0, 1, 500_000_000, 999_000_000))))


def _odd(path: bytes, chosen: random.Random, top: bytes, outside: bytes) -> None:
    kind = chosen.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        _listen(path)
    else:
        os.symlink(
            chosen.choice((b"a", b"../b", b"nothing", path, top, os.path.join(outside, b"f"), b"/dev/null")),
            path,
        )


def _listen(path: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as each, suppress(OSError):  # a path has 107 bytes at most
        here = os.open(os.path.dirname(path), os.O_DIRECTORY)
        try:
            each.bind(b"/proc/self/fd/%d/%b" % (here, os.path.basename(path)))
        finally:
            os.close(here)


def seen(
    act: Callable[[Callable[[StorageError], object]], Any],
) -> tuple[object, list[tuple[str, str | None]]]:
    """What an act gives or raises, and what it reports."""
    reports: list[tuple[str, str | None]] = []

    def on_skip(error: StorageError) -> None:
        reports.append((type(error).__name__, error.identifier))

    try:
        found: object = act(on_skip)
    except (StorageError, ValueError) as error:
        found = type(error).__name__
    return found, sorted(reports, key=repr)


def difference(found: object, expected: object) -> object:
    """What two results do not share, for people."""
    if isinstance(found, list) and isinstance(expected, list):
        return [each for each in found if each not in expected], [
            each for each in expected if each not in found
        ]
    if isinstance(found, tuple) and isinstance(expected, tuple):
        return [difference(*pair) for pair in zip(found, expected, strict=True)]
    return found, expected


def outcome(verb: Callable[..., object], *arguments: object) -> object:
    """What a verb gives, or the kind of its error."""
    try:
        return verb(*arguments)
    except (StorageError, ValueError) as error:
        return type(error).__name__


def facts(info: ObjectInfo | str) -> object:
    return info if isinstance(info, str) else (info.identifier, info.size, info.modified)


Pair = tuple[RemoteStorage, RemoteStorage]


@contextmanager
def both(place: SSHPlace, base: str | None = None, **more: Any) -> Iterator[Pair]:
    """The place by shell, and by SFTP alone."""
    ways: list[Any] = [place.config(shell=shell, **more) for shell in ("auto", "never")]
    with (
        closing(RemoteStorage(ways[0], base or place.base)) as by_shell,
        closing(RemoteStorage(ways[1], base or place.base)) as by_sftp,
    ):
        yield by_shell, by_sftp


def test_the_two_ways_are_two(openssh_place: SSHPlace) -> None:
    with both(openssh_place) as (by_shell, by_sftp):
        assert "find" in by_shell.check_connection()
        assert "SFTP alone" in by_sftp.check_connection()


def scanned(backend: StorageBackend, prefix: str) -> tuple[object, list[tuple[str, str | None]]]:
    return seen(lambda on_skip: [facts(info) for info in backend.scan(prefix, on_skip=on_skip)])


def levelled(backend: StorageBackend, prefix: str) -> tuple[object, list[tuple[str, str | None]]]:
    return seen(lambda on_skip: [facts(info) for info in backend.scan_level(prefix, on_skip=on_skip)])


@pytest.mark.soak
@pytest.mark.parametrize("seed", few(SEEDS, 1))
def test_trees_look_the_same_by_shell_and_by_sftp(openssh_place: SSHPlace, seed: int) -> None:
    root = openssh_place.local / "tree"
    root.mkdir()
    grow(root, seed)
    with both(openssh_place, f"{openssh_place.base}/tree") as (by_shell, by_sftp):
        assert len(by_shell.list()) > 10
        for prefix in PREFIXES:
            first, second = scanned(by_shell, prefix), scanned(by_sftp, prefix)
            assert first[0] == second[0], prefix
            assert _known(first[1]) == _known(second[1]), prefix
        for pattern in PATTERNS:
            assert outcome(by_shell.list, pattern) == outcome(by_sftp.list, pattern), pattern
        assert (
            by_shell.list() == by_sftp.list() == [info.identifier for info in by_shell.scan(on_skip=_ignore)]
        )


def _known(reports: list[tuple[str, str | None]]) -> set[tuple[str, str | None]]:
    """Reports that all ways make. Of what is too long `find` names each file, and a walk the directory it does not enter."""
    return {(kind, name) for kind, name in reports if name is None or len(name) < 800}


def _ignore(_: StorageError) -> None:
    pass


@pytest.mark.parametrize("seed", few(SEEDS, 1))
def test_trees_look_the_same_from_the_disk(openssh_place: SSHPlace, seed: int) -> None:
    root = openssh_place.local / "tree"
    root.mkdir()
    grow(root, seed)
    local = LocalStorage(root)
    top = os.path.realpath(root)

    def contained(name: str | None) -> bool:
        """Not a link outside: these are objects by SSH, and reported from the disk."""
        path = os.path.join(os.fsencode(root), encode(name or ""))
        return not os.path.islink(path) or os.path.realpath(path).startswith(os.fsencode(top) + b"/")

    def comparable(found: tuple[object, list[tuple[str, str | None]]]) -> object:
        listed, reports = found
        if isinstance(listed, list):
            listed = [_rounded(each) for each in listed if isinstance(each, str) or contained(each[0])]
        return listed, {
            (kind, name)
            for kind, name in _known(reports)
            if name is None
            or "\0" in name
            or (contained(name) and not os.path.islink(os.path.join(os.fsencode(root), encode(name))))
        }

    with both(openssh_place, f"{openssh_place.base}/tree") as pair:
        for remote in pair:
            for prefix in PREFIXES:
                found, expected = comparable(scanned(remote, prefix)), comparable(scanned(local, prefix))
                assert found == expected, (prefix, difference(found, expected))
            for prefix in (
                "",
                "a/",
                "d/",
                "d/e/",
                "link/",
                "no/",
                "/",
                "../",
                "f/",
                "outside/",
                ".~sb-x/",
                "a//",
            ):
                assert comparable(levelled(remote, prefix)) == comparable(levelled(local, prefix)), prefix
            for pattern in PATTERNS:
                found, expected = (
                    [name for name in each.list(pattern) if contained(name)] for each in (remote, local)
                )
                assert found == expected, pattern


def _rounded(found: Any) -> object:
    if isinstance(found, str):
        return found
    identifier, size, modified = found
    return identifier, size, datetime.fromtimestamp(modified.timestamp() // 1, UTC)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_each_object_is_the_same_by_both_ways(openssh_place: SSHPlace, seed: int) -> None:
    root = openssh_place.local / "tree"
    root.mkdir()
    grow(root, seed)
    local = LocalStorage(root)
    with both(openssh_place, f"{openssh_place.base}/tree") as (by_shell, by_sftp):
        infos = {info.identifier: info for info in by_shell.scan(on_skip=_ignore)}
        for name, info in infos.items():
            assert facts(by_shell.stat(name)) == facts(by_sftp.stat(name)) == facts(info)
        chosen = random.Random(seed).sample(sorted(infos), min(12, len(infos)))
        for number, name in enumerate(chosen):
            content = by_sftp.read(name)
            assert same(by_shell.read(name), content)
            assert by_shell.checksum(name) == by_sftp.checksum(name)
            copies = [f"copies/{number}-{way}" for way in ("shell", "sftp")]
            for backend, copy in zip((by_shell, by_sftp), copies, strict=True):
                assert backend.copy(name, copy)
                assert facts(backend.stat(copy)) == (copy, infos[name].size, infos[name].modified)
                assert same(local.read(copy), content)
            modes = {(root / copy).stat().st_mode & 0o777 for copy in copies}
            assert len(modes) == 1
        others = [
            "d",
            "link",
            "fifo",
            "socket",
            "no such",
            "f/x",
            "broken",
            "looping",
            "outside",
            "deep",
            "x" * 256,
            ".~sb-x",
        ]
        for other in others:
            for verb in (
                StorageBackend.stat,
                StorageBackend.size,
                StorageBackend.checksum,
                StorageBackend.exists,
            ):
                first, second = (
                    outcome(getattr(backend, verb.__name__), other) for backend in (by_shell, by_sftp)
                )
                assert first == second, (other, verb)
            if other != "fifo":  # test_remote_pipes.py
                assert outcome(by_shell.read, other) == outcome(by_sftp.read, other), other
            for name in ("copy", "move"):
                before = on_disk(root)
                found = [outcome(getattr(backend, name), other, "new/x") for backend in (by_shell, by_sftp)]
                if on_disk(root) == before:
                    assert found[0] == found[1], (other, name)


def on_disk(root: Path) -> set[bytes]:
    """All there is beneath a directory."""
    return {
        os.path.join(folder, name)
        for folder, folders, files in os.walk(os.fsencode(root))
        for name in (*folders, *files)
    }


def test_time_with_all_its_nanoseconds_is_rounded_down(openssh_place: SSHPlace) -> None:
    path = openssh_place.local / "a"
    path.write_bytes(b"x")
    with both(openssh_place) as pair:
        for second in (1, 1_700_000_000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, -1, 1 << 32, (1 << 32) + 7):
            os.utime(path, ns=(0, second * 10**9 + 999_999_999))
            for backend in pair:
                (info,) = backend.scan()
                assert info.modified == backend.stat("a").modified
                if second < 1 << 32:  # from 2**31 on it may be of before 1970
                    known = 0 <= second < 1 << 31
                    assert info.modified == (datetime.fromtimestamp(second, UTC) if known else None)


@pytest.fixture
def unprivileged() -> Iterator[SSHPlace]:
    """A place whose server's programs run as nobody, since root reads everything."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        unavailable("another user's rights are root's to take, with setpriv of util-linux")
    with tempfile.TemporaryDirectory(prefix="sb-nobody-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        wrapper = folder / "wrapper"
        drop = f"exec {setpriv} --reuid=65534 --regid=65534 --clear-groups"
        wrapper.write_text(
            f'#!/bin/sh\ncase "$SSH_ORIGINAL_COMMAND" in *sftp-server*) {drop} {sftp_server()};; esac\n'
            f'{drop} /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        wrapper.chmod(0o755)
        tree = folder / "tree"
        tree.mkdir()
        server = OpenSSH(command_wrapper=wrapper)
        try:
            with server.place() as place:
                yield replace(place, base=str(tree), local=tree)
        finally:
            server.stop()


def test_directory_that_may_not_be_read_is_an_error_by_both_ways(unprivileged: SSHPlace) -> None:
    locked = unprivileged.local / "locked"
    locked.mkdir(mode=0)
    (unprivileged.local / "a").write_bytes(b"x")
    (unprivileged.local / "secret").write_bytes(b"x")
    (unprivileged.local / "secret").chmod(0)
    with both(unprivileged) as pair:
        assert "find" in pair[0].check_connection()
        for backend in pair:
            for prefix in ("", "locked/", "l"):
                with pytest.raises(AccessDeniedError):
                    list(backend.scan(prefix))
            with pytest.raises(AccessDeniedError):
                backend.list()
            assert backend.list("*") == ["a", "secret"]
            assert backend.stat("secret").size == 1
            for act in (backend.read, backend.checksum):
                with pytest.raises(AccessDeniedError):
                    act("secret")
            with pytest.raises(AccessDeniedError):
                backend.write("new", b"x")
            with pytest.raises(AccessDeniedError):
                backend.read("locked/x")


def test_prefix_never_leads_out_of_the_base_directory(openssh_place: SSHPlace) -> None:
    inside = openssh_place.local / "inside"
    beside = openssh_place.local / "beside"
    for folder in (inside, beside):
        folder.mkdir()
        (folder / "f").write_bytes(b"x")
    (inside / "to-beside").symlink_to(beside)
    with both(openssh_place, f"{openssh_place.base}/inside") as pair:
        for backend in pair:
            for prefix in (
                "../",
                "../beside/",
                f"{openssh_place.base}/beside/",
                "to-beside/",
                "to-beside/f",
                "./",
                "x/../",
            ):
                reports: list[StorageError] = []
                assert list(backend.scan(prefix, on_skip=reports.append)) == []
                assert list(backend.scan_level(prefix, on_skip=reports.append)) == []
                assert reports == []


def test_pipe_is_no_object(openssh_place: SSHPlace) -> None:
    os.mkfifo(openssh_place.local / "fifo")
    (openssh_place.local / "a").write_bytes(b"x")
    with both(openssh_place, io_timeout=2.0) as pair:
        for backend in pair:
            assert backend.exists("fifo") is False
            for act in (backend.stat, backend.size, backend.checksum, backend.delete):
                with pytest.raises(NotAFileError):
                    act("fifo")
            with pytest.raises(NotAFileError):
                backend.copy("fifo", "b")
            with pytest.raises(NotAFileError):
                backend.move("fifo", "b")
            with pytest.raises(NotAFileError):
                backend.write("fifo", b"x")


def test_file_that_has_content_and_no_size_is_read_or_refused_but_never_empty(
    openssh_place: SSHPlace,
) -> None:
    for backend in (
        RemoteStorage(openssh_place.config(), "/proc/self"),  # type: ignore[arg-type]  # a dictionary of any values
        RemoteStorage(openssh_place.config(shell="never"), "/proc/self"),  # type: ignore[arg-type]
    ):
        with backend:
            assert backend.size("status") == 0
            assert backend.read("status").startswith(b"Name:")
            found = dict(backend.read_many(["status"] * 100))  # as a tar stream, where there is a shell
            assert found["status"].startswith(b"Name:")
            for act in (
                lambda: backend.open("status"),  # noqa: B023 - called at once
                lambda: backend.read_range("status", 0, 5),  # noqa: B023
                lambda: backend.copy("status", "x"),  # noqa: B023
            ):
                with pytest.raises(StorageError, match="does not report the size"):
                    act()


def test_times_that_sftp_cannot_have_are_not_kept_and_a_second_sync_has_nothing_to_do(
    openssh_place: SSHPlace, tmp_path: Path
) -> None:
    moments = {
        "1905": -2_050_000_000,
        "1960": -300_000_000,
        "before 1970": -1,
        "1970": 0,
        "half a second": 1_600_000_000.5,
        "2038": (1 << 31) - 1,
        "after 2038": 1 << 31,
        "2106": (1 << 32) - 1,
        "after 2106": (1 << 32) + 5,
        "2110": 4_400_000_000,
    }
    fits = {name for name, moment in moments.items() if 0 <= moment < 1 << 31}

    def fill(directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        for name, moment in moments.items():
            (directory / name).write_bytes(name.encode())
            os.utime(directory / name, (moment, moment))

    with both(openssh_place) as pair:
        for number, backend in enumerate(pair):
            side = PrefixedStorage(backend, f"to-{number}")
            local = tmp_path / f"from-{number}"
            fill(local)
            assert sync(LocalStorage(local), side).copied == len(moments)
            for other in pair:
                looked = PrefixedStorage(other, f"to-{number}")
                for info in looked.scan():
                    assert info == looked.stat(info.identifier)
                    assert info.modified is not None
                    if info.identifier in fits:
                        assert info.modified.timestamp() == moments[info.identifier] // 1
                    else:  # the time of writing
                        assert info.modified.year >= 2026
                assert sync(LocalStorage(local), looked).copied == 0
            # What is on the server may be of any time, too.
            fill(openssh_place.local / f"from-{number}")
            source = PrefixedStorage(backend, f"from-{number}")
            assert source.stat("1960").modified is None
            target = LocalStorage(tmp_path / f"to-{number}")
            assert sync(source, target).copied == len(moments)
            assert sync(source, target).copied == 0
            (openssh_place.local / f"from-{number}" / "1960").write_bytes(b"1961")
            os.utime(openssh_place.local / f"from-{number}" / "1960", (-1, -1))
            assert sync(source, target).copied == 1
            assert target.read("1960") == b"1961"


def test_directory_that_is_gone_or_a_file_has_nothing_beneath(openssh_place: SSHPlace) -> None:
    (openssh_place.local / "f").write_bytes(b"")
    with both(openssh_place) as pair, both(openssh_place, f"{openssh_place.base}/gone") as gone:
        for backend in (*pair, *gone):
            for prefix in ("f/", "no/", "no/such/x"):
                assert list(backend.scan(prefix)) == []
                assert list(backend.scan_level(f"{prefix.rpartition('/')[0]}/")) == []
        for backend in gone:
            assert backend.list() == []
            with pytest.raises(NotFoundError):
                backend.read("a")


def test_names_of_the_tree_are_odd_enough() -> None:
    assert {decode(name) for name in NAMES} >= {"a", "a!", "\udcff"}
    with pytest.raises(InvalidIdentifierError):
        LocalStorage("/").get_path("/".join(["y" * 200] * 6))
