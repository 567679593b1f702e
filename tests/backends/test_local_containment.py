"""Nothing outside the base directory is read, listed or written, by either way to resolve a path."""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from storage_backend import (
    AlreadyExistsError,
    InvalidIdentifierError,
    LocalStorage,
    NotAFileError,
    NotFoundError,
    StorageError,
)
from storage_backend.backends.local import containment
from tests.backends.local_ways import WAYS, BareStorage, NamingStorage, Swapper, without_openat2
from tests.tiers import few

INSIDE = b"inside" * 100
SECRET = b"secret" * 100
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the base one, with something to leak."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "x").write_bytes(SECRET)
    (place / "only").write_bytes(SECRET)
    (place / "deep").mkdir()
    (place / "deep" / "only").write_bytes(SECRET)
    return place


@pytest.fixture
def base(tmp_path: Path) -> Path:
    place = tmp_path / "base"
    place.mkdir()
    return place


@pytest.fixture(params=WAYS)
def storage(request: pytest.FixtureRequest, base: Path) -> LocalStorage:
    found: LocalStorage = request.param(base)
    return found


def untouched(outside: Path) -> bool:
    return sorted(str(path.relative_to(outside)) for path in outside.rglob("*")) == [
        "deep",
        "deep/only",
        "only",
        "x",
    ] and all(path.read_bytes() == SECRET for path in outside.rglob("*") if path.is_file())


def outcome(act: Callable[[], object]) -> object:
    """What *act* gives, or the class of what it raises."""
    try:
        return act()
    except StorageError as error:
        return type(error)


def test_kernel_is_asked_where_it_can_answer() -> None:
    if sys.platform != "linux":
        pytest.skip("openat2 is Linux's")
    fd = containment._openat2(containment._AT_FDCWD, b"/", containment.LOOKUP, containment._NO_SYMLINKS)
    if fd == -errno.ENOSYS:
        pytest.skip("this kernel has no openat2")
    assert fd >= 0
    os.close(fd)


@pytest.mark.parametrize(
    "target",
    [
        "../outside/x",
        "{outside}/x",
        "sub/../../outside/x",
        "/etc/hostname",
        "up/outside/x",
        "../base/../outside/x",
    ],
)
def test_symlink_that_leaves_is_refused(
    storage: LocalStorage, base: Path, outside: Path, target: str
) -> None:
    (base / "sub").mkdir()
    (base / "up").symlink_to("..")
    (base / "link").symlink_to(target.format(outside=outside))
    for act in (
        lambda: storage.read("link"),
        lambda: storage.size("link"),
        lambda: storage.stat("link"),
        lambda: storage.open("link"),
        lambda: storage.read_range("link", 0, 4),
        lambda: storage.checksum("link"),
        lambda: storage.copy("link", "copy"),
        lambda: storage.download("link", base.parent / "download"),
        lambda: storage._resolve_path("link"),
    ):
        with pytest.raises(InvalidIdentifierError, match="outside base directory"):
            act()
    assert storage.exists("link") is False
    assert storage.list() == []
    skipped: list[StorageError] = []
    assert list(storage.scan(on_skip=skipped.append)) == []
    assert [error.identifier for error in skipped] == ["link", "up"]
    assert all(isinstance(error, InvalidIdentifierError) for error in skipped)
    assert not (base.parent / "download").exists()


@pytest.mark.parametrize("target", ["../outside", "{outside}", "../outside/deep"])
def test_directory_that_leaves_is_refused(
    storage: LocalStorage, base: Path, outside: Path, target: str
) -> None:
    (base / "d").symlink_to(target.format(outside=outside))
    storage.write("inside", INSIDE)
    for act in (
        lambda: storage.read("d/only"),
        lambda: storage.size("d/only"),
        lambda: storage.write("d/only", INSIDE),
        lambda: storage.write("d/new", INSIDE),
        lambda: storage.write("d/new/below", INSIDE),
        lambda: storage.create("d/new", INSIDE),
        lambda: storage.open("d/new", "wb"),
        lambda: storage.delete("d/only"),
        lambda: storage.copy("inside", "d/only"),
        lambda: storage.move("inside", "d/only"),
        lambda: storage.move("d/only", "stolen"),
        lambda: storage.upload(base / "inside", "d/new"),
    ):
        with pytest.raises(InvalidIdentifierError, match="outside base directory"):
            act()
    assert storage.exists("d/only") is False
    for prefix in ("", "d", "d/", "d/o"):
        assert [info.identifier for info in storage.scan(prefix) if info.identifier != "inside"] == []
    for pattern in ("**", "d/*", "d/only", "*/*"):
        assert [name for name in storage.list(pattern) if name != "inside"] == []
    assert untouched(outside)


def test_write_replaces_the_symlink_and_not_its_target(
    storage: LocalStorage, base: Path, outside: Path
) -> None:
    writes: tuple[Callable[[str], object], ...] = (
        lambda name: storage.write(name, INSIDE),
        lambda name: storage.upload(base / "own", name),
        lambda name: storage.copy("own", name),
        lambda name: storage.move("moved", name),
    )
    for number, write in enumerate(writes):
        storage.write("own", INSIDE)
        storage.write("moved", INSIDE)
        name = f"link{number}"
        (base / name).symlink_to(outside / "x")
        write(name)
        assert not (base / name).is_symlink()
        assert storage.read(name) == INSIDE
    assert untouched(outside)


def test_delete_and_move_act_on_the_symlink(storage: LocalStorage, base: Path, outside: Path) -> None:
    (base / "link").symlink_to(outside / "x")
    storage.move("link", "renamed")
    assert (base / "renamed").is_symlink()
    assert not (base / "link").is_symlink()
    storage.delete("renamed")
    assert list(base.iterdir()) == []
    assert untouched(outside)


@pytest.mark.parametrize(
    ("text", "dest"),
    [
        ("d/file", "renamed"),
        ("d/file", "other/deep/renamed"),
        ("d/file", "d/file"),  # what it leads to
        ("chain", "other/renamed"),
        ("chain", "chain"),  # what is on the way
        ("d/file", "back"),  # what leads through it
        ("{base}/d/file", "other/renamed"),
        ("{base}/chain", "chain"),
        ("linked/file", "other/renamed"),
        ("linked/file", "linked/renamed"),
    ],
)
def test_moved_symlink_leads_where_it_did(storage: LocalStorage, base: Path, text: str, dest: str) -> None:
    storage.write("d/file", INSIDE)
    (base / "chain").symlink_to("d/file")
    (base / "linked").symlink_to("d")
    (base / "back").symlink_to("link")
    (base / "link").symlink_to(text.format(base=base))
    assert storage.move("link", dest) is True
    assert storage.read(dest) == storage.read("d/file") == INSIDE
    assert not storage.exists("link")
    assert not (base / "link").is_symlink()
    if dest != "d/file":
        assert (base / dest).is_symlink()
    assert not list(base.rglob(".~sb-*"))


def test_file_moved_onto_a_symlink_to_it_replaces_it(storage: LocalStorage, base: Path) -> None:
    storage.write("d/file", INSIDE)
    (base / "link").symlink_to("d/file")
    storage.move("d/file", "link")
    assert storage.read("link") == INSIDE
    assert storage.list() == ["link"]


def test_symlink_that_stays_beneath_reads_as_its_target(storage: LocalStorage, base: Path) -> None:
    storage.write("sub/deep/file", INSIDE)
    (base / "relative").symlink_to("sub/deep/file")
    (base / "absolute").symlink_to(base / "sub" / "deep" / "file")
    (base / "dots").symlink_to("./sub//deep/../deep/./file")
    (base / "sub" / "above").symlink_to("../sub/deep/file")
    (base / "chain").symlink_to("sub/above")
    (base / "home").symlink_to(base)
    links = ["absolute", "chain", "dots", "relative", "sub/above"]
    skipped: list[StorageError] = []
    found = {info.identifier: info for info in storage.scan(on_skip=skipped.append)}
    assert list(found) == ["absolute", "chain", "dots", "relative", "sub/above", "sub/deep/file"]
    assert storage.list() == list(found)
    assert [(error.identifier, type(error)) for error in skipped] == [("home", NotAFileError)]
    for name in links:
        assert storage.read(name) == INSIDE
        assert storage.exists(name)
        assert storage.size(name) == found[name].size == len(INSIDE)
        assert storage.read_range(name, 1, 5) == INSIDE[1:5]
    # A directory is not walked through a symlink, but an object can be named through it.
    assert storage.read("home/home/sub/above") == INSIDE
    assert storage.list("home/**") == []
    storage.write("home/sub/new", INSIDE)
    assert storage.read("sub/new") == INSIDE
    storage.copy("relative", "copy")
    assert not (base / "copy").is_symlink()


def test_absolute_symlink_by_another_name_of_the_base_stays_beneath(
    storage: LocalStorage, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "alias").symlink_to(base)
    storage.write("file", INSIDE)
    (base / "link").symlink_to(tmp_path / "alias" / "file")
    assert storage.read("link") == INSIDE
    assert storage.list() == ["file", "link"]


def test_name_that_only_begins_like_the_base_is_outside(storage: LocalStorage, base: Path) -> None:
    beside = base.parent / f"{base.name}-private"
    beside.mkdir()
    (beside / "x").write_bytes(SECRET)
    (base / "link").symlink_to(beside / "x")
    with pytest.raises(InvalidIdentifierError, match="outside base directory"):
        storage.read("link")


def test_loops_and_dangling_symlinks_are_no_objects(storage: LocalStorage, base: Path) -> None:
    (base / "self").symlink_to("self")
    (base / "one").symlink_to("two")
    (base / "two").symlink_to("one")
    (base / "dangling").symlink_to("nothing/here")
    assert outcome(lambda: storage.read("self")) is InvalidIdentifierError
    assert outcome(lambda: storage.read("one/x")) is InvalidIdentifierError
    assert outcome(lambda: storage.read("dangling")) is NotFoundError
    assert outcome(lambda: storage.write("dangling/x", b"")) is AlreadyExistsError
    assert not any(map(storage.exists, ("self", "one", "dangling")))
    skipped: list[StorageError] = []
    assert list(storage.scan(on_skip=skipped.append)) == []
    assert {str(error.identifier): type(error) for error in skipped} == {
        "dangling": NotFoundError,
        "one": InvalidIdentifierError,
        "self": InvalidIdentifierError,
        "two": InvalidIdentifierError,
    }


def test_file_on_the_way_hides_what_is_said_to_be_below(storage: LocalStorage) -> None:
    storage.write("file", INSIDE)
    assert outcome(lambda: storage.read("file/x")) is NotFoundError
    assert outcome(lambda: storage.delete("file/x")) is NotFoundError
    assert outcome(lambda: storage.write("file/x", b"")) is AlreadyExistsError
    assert storage.exists("file/x") is False
    assert storage.list("file/*") == []


def grow(root: Path, chance: random.Random) -> None:
    """A forest of directories, files and symlinks, some of which lead nowhere, in circles, or outside."""
    places = [root]
    for _ in range(60):
        path = chance.choice(places) / chance.choice(NAMES)
        if path.is_symlink() or path.exists():
            continue
        kind = chance.random()
        if kind < 0.3:
            path.mkdir()
            places.append(path)
        elif kind < 0.5:
            path.write_text(str(path))
        else:
            path.symlink_to(
                "/".join(chance.choices([*NAMES, "..", ".", ""], k=chance.randint(1, 4))).lstrip("/") or "."
            )


def test_walk_resolves_as_the_kernel_does(tmp_path: Path) -> None:
    chance = random.Random(20)
    seen: Counter[object] = Counter()
    for number in range(15):
        base = tmp_path / str(number)
        base.mkdir()
        grow(base, chance)
        kernel, walk = LocalStorage(base), WAYS[1](base)
        for _ in range(200):
            name = "/".join(chance.choices(NAMES, k=chance.randint(1, 4)))
            expected = outcome(partial(kernel.read, name))
            assert outcome(partial(walk.read, name)) == expected, name
            assert kernel.exists(name) == walk.exists(name) == isinstance(expected, bytes)
            seen[expected if isinstance(expected, type) else bytes] += 1
        assert kernel.list() == walk.list()
        assert all(isinstance(kernel.read(name), bytes) for name in kernel.list())
    assert seen.keys() == {bytes, NotFoundError, NotAFileError, InvalidIdentifierError}
    assert min(seen.values()) > 50, seen


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EAGAIN])
def test_kernel_without_an_answer_is_done_without(base: Path, outside: Path, code: int) -> None:
    """An old kernel, a container's filter, and a race that is always lost."""
    storage = LocalStorage(base)

    def act() -> list[object]:
        storage.write("d/a", INSIDE)
        (base / "in").symlink_to("d/a")
        (base / "out").symlink_to(outside)
        return [
            containment._openat2(containment._AT_FDCWD, b"/", containment.LOOKUP, containment._NO_SYMLINKS),
            storage.read("in"),
            storage.size("d/a"),
            storage.exists("d/b"),
            outcome(lambda: storage.read("out/x")),
            outcome(lambda: storage.write("out/x", b"")),
            storage.list("**"),
        ]

    assert without_openat2(code, act) == [
        -code,
        INSIDE,
        len(INSIDE),
        False,
        InvalidIdentifierError,
        InvalidIdentifierError,
        ["d/a", "in"],
    ]
    assert untouched(outside)


@pytest.mark.parametrize("way", WAYS)
def test_no_read_leaks_while_names_are_swapped(
    way: type[LocalStorage], base: Path, outside: Path, soak: bool
) -> None:
    rounds = 50_000 if soak else 5000
    storage = way(base)
    storage.write("file", INSIDE)
    storage.write("d/x", INSIDE)
    (base / "file.link").symlink_to("../outside/x")
    (base / "d.link").symlink_to("../outside")
    seen: Counter[object] = Counter()
    swapper = Swapper(
        ("exchange", base / "file", base / "file.link"), ("exchange", base / "d", base / "d.link")
    )
    with swapper:
        for _ in swapper.rounds(
            rounds, swaps=rounds // 10, met=lambda: len(seen) == 4 and min(seen.values()) > 20
        ):
            for name in ("file", "d/x"):
                try:
                    content = storage.read(name)
                except InvalidIdentifierError:
                    seen[name, "refused"] += 1
                else:
                    assert content == INSIDE
                    seen[name, "read"] += 1
    assert sum(seen.values()) >= 2 * rounds


@pytest.mark.parametrize("way", WAYS)
def test_no_listing_leaks_while_names_are_swapped(way: type[LocalStorage], base: Path, outside: Path) -> None:
    storage = way(base)
    (outside / "x").write_bytes(SECRET * 7)  # another size than that of any object
    storage.write("file", INSIDE)
    storage.write("d/x", INSIDE)
    storage.write("d/deep/y", INSIDE)
    (base / "file.link").symlink_to("../outside/x")
    (base / "d.link").symlink_to("../outside")
    allowed = {"file", "file.link", "d/x", "d.link/x", "d/deep/y", "d.link/deep/y"}
    seen: Counter[str] = Counter()
    swapper = Swapper(
        ("exchange", base / "file", base / "file.link"), ("exchange", base / "d", base / "d.link")
    )
    with swapper:
        listed = ("file", "file.link", "d/x", "d.link/x", "InvalidIdentifierError")
        for _ in swapper.rounds(1500, swaps=100, met=lambda: min(seen[name] for name in listed) > 3):
            for info in storage.scan(on_skip=lambda error: seen.update([type(error).__name__])):
                assert info.identifier in allowed
                assert info.size == len(INSIDE)
                seen[info.identifier] += 1
            assert set(storage.list("d/**")) <= allowed
            assert storage.exists("d/only") is False
            assert outcome(lambda: storage.size("d/x")) in {len(INSIDE), InvalidIdentifierError}
            assert outcome(lambda: storage.stat("d/only")) in {NotFoundError, InvalidIdentifierError}


@pytest.mark.parametrize("way", few([*WAYS, NamingStorage, BareStorage], 2))
def test_no_change_leaks_while_a_directory_is_swapped(
    way: type[LocalStorage], base: Path, outside: Path
) -> None:
    storage = way(base)
    storage.write("d/x", INSIDE)
    storage.write("own", INSIDE)
    (base / "d.link").symlink_to("../outside")
    seen: Counter[object] = Counter()
    swapper = Swapper(("exchange", base / "d", base / "d.link"))
    with swapper:
        for number in swapper.rounds(
            1500, swaps=20, met=lambda: min(seen[True], seen[InvalidIdentifierError]) > 10
        ):
            for act in (
                lambda: storage.write("d/x", INSIDE),
                lambda: storage.write(f"d/new{number}/y", INSIDE),  # noqa: B023 - called at once
                lambda: storage.create("d/created", INSIDE),
                lambda: storage.copy("own", "d/only"),
                lambda: storage.move("d/only", "d/deep/only"),
                lambda: storage.delete("d/deep/only"),
                lambda: storage.delete("d/created"),
            ):
                result = outcome(act)
                assert result in {True, False, NotFoundError, InvalidIdentifierError}, result
                seen[result] += 1
    assert untouched(outside)


@pytest.mark.parametrize("way", few([*WAYS, NamingStorage, BareStorage], 2))
def test_no_write_leaks_while_a_symlink_is_put_in_its_place(
    way: type[LocalStorage], base: Path, outside: Path
) -> None:
    storage = way(base)
    swapper = Swapper(("link", outside / "x", base / "x"))
    with swapper:
        for _ in swapper.rounds(1000, swaps=20):
            storage.write("x", INSIDE)
    assert untouched(outside)


@pytest.mark.parametrize("way", WAYS)
def test_symlink_that_always_stays_beneath_is_never_refused(way: type[LocalStorage], base: Path) -> None:
    """The kernel says EAGAIN when it loses a race, and a component may be a symlink only for a moment."""
    storage = way(base)
    storage.write("real/x", INSIDE)
    storage.write("d/x", INSIDE)
    (base / "sub").mkdir()
    (base / "sub" / "up").symlink_to("../real/../d/x")
    (base / "d.link").symlink_to("real")
    swapper = Swapper(("exchange", base / "d", base / "d.link"))
    with swapper:
        for _ in swapper.rounds(5000, swaps=100):
            assert storage.read("sub/up") == INSIDE
            assert storage.read("d/x") == INSIDE


@pytest.mark.parametrize("way", few([*WAYS, NamingStorage, BareStorage], 2))
def test_directories_that_are_always_removed_are_made_again(way: type[LocalStorage], base: Path) -> None:
    storage = way(base)
    storage.write("own", INSIDE)
    swapper = Swapper(("prune", base / "d" / "e", base / "d"))
    with swapper:
        for _ in swapper.rounds(400, swaps=20):
            assert storage.write("d/e/f", INSIDE)
            assert storage.delete("d/e/f")
            assert storage.copy("own", "d/e/f")
            assert storage.move("d/e/f", "d/g")
            assert storage.delete("d/g")
