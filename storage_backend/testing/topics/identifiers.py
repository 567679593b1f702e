"""Identifiers: awkward ones, invalid ones, and those that name directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage_backend.base import StorageBackend
from storage_backend.errors import (
    AlreadyExistsError,
    BatchError,
    InvalidIdentifierError,
    NotAFileError,
    UnsupportedOperationError,
)
from storage_backend.identifiers import encode
from storage_backend.testing.subject import (
    Source,
    Subject,
    Topic,
    everything,
    fill,
    has_directories,
    named,
    names,
)

AWKWARD = (
    *("a b", " a", "a ", "  ", "a\tb", "a\nb", "a\r\nb", "\r", "\x01", "\x1b[31m", "\x7f"),
    *(
        "'",
        '"',
        "''",
        "a'b",
        'a"b',
        "`id`",
        "$(id)",
        "$HOME",
        "${x}",
        ";",
        "a;b",
        "a&b",
        "|",
        ">",
        "<",
        "!",
        "^",
    ),
    *(
        "'; DROP TABLE objects; --",
        "%",
        "_",
        "%s",
        "%(x)s",
        "{x}",
        "{0}",
        "%2F",
        "%2e%2e",
        "%00",
        "a%20b",
        "a+b",
    ),
    *(
        "-",
        "--",
        "-rf",
        "--help",
        "-d/-f",
        "~",
        "~root",
        "#",
        "a#b",
        "?",
        "a?b=c&d=e",
        "*",
        "**",
        "[",
        "]",
        "[a]",
        "[!a]",
    ),
    *("\\", "a\\b", "\\\\host\\share", "C:", "a:b", "con", "nul.txt", "a|b", "=", "@", "a@b", ",", "a,b"),
    *(
        ".hidden",
        "...",
        "..a",
        "a..",
        "a..b",
        ".a",
        "a.",
        ".~",
        ".~sb",
        "a.~sb-b",
        "sub/..a/.b",
        "s3:",
        "file:",
    ),
    *(
        "é",
        "日本語/ファイル",
        "Ω",
        "ß",
        "ﬁ",
        "\u202egnp.exe",
        "\ufeff",
        "\u2028",
        "\u00a0",
        "\u200b",
        "İ",
        "ı",  # noqa: RUF001 - on purpose
    ),
    *("😀", "\U0010ffff", "\uffff", "\ud7ff", "\ue000", "👩‍👩‍👧/👍🏽"),
    *("None", "null", "0", "01", "1e3", "true", "NaN", "manifest.json", "__init__.py", "index"),
)
"""Valid identifiers. Each names an object of its own and comes back unchanged from every store."""

TWINS = (("case", "CASE", "Case"), ("\u00e9x", "e\u0301x"), ("stra\u00dfe", "strasse"), ("\u212a", "K", "k"))
"""Pairs that are equal after case folding or normalisation; they name different objects."""

OUTSIDE = ("..", "../a", "a/..", "a/../b", "a/../../b", "/", "/a", "/etc/passwd", "//a", "/../a")
"""Refused with "outside base directory" in the message."""

INVALID = (
    *OUTSIDE,
    *("", ".", "./a", "a/.", "a/./b", "a//b", "a/", "a/b/", "\0", "a\0b", "a/\0"),
    *(".~sb-", ".~sb-a", "a/.~sb-b", ".~sb-a/b"),
    *("\ud800", "a\udfffb", "\udcc3\udca9", "x" * 1025, "é" * 513, "a/" * 512 + "a"),
)
"""Identifiers that are refused before any I/O: no encoding, a second spelling of another, too long; 1,025 bytes each."""


class AwkwardIdentifiers(Topic):
    """All valid identifiers work alike."""

    def test_awkward_identifiers_round_trip(self, subject: Subject, backend: StorageBackend) -> None:
        awkward = awkward_names(subject)
        fill(backend, *awkward)
        assert everything(backend) == {name: named(name) for name in awkward}
        wrong = [
            name
            for name in awkward
            if not backend.exists(name)
            or backend.size(name) != len(named(name))
            or backend.stat(name).identifier != name
            or backend.read_range(name, 0, 4) != b"cont"
            or not isinstance(backend.get_path(name), str)
        ]
        assert wrong == []
        assert dict(backend.read_many(awkward)) == {name: named(name) for name in awkward}

    def test_awkward_identifiers_are_listed_in_order(self, subject: Subject, backend: StorageBackend) -> None:
        awkward = awkward_names(subject)
        fill(backend, *awkward)
        assert names(backend.scan()) == sorted(awkward, key=encode)
        if subject.has("order"):
            assert backend.list() == sorted(awkward, key=encode)

    def test_awkward_identifiers_are_copied_moved_and_deleted(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        awkward = awkward_names(subject)
        for name in awkward:
            fill(backend, name)
            backend.copy(name, f"{name} copy")
            backend.move(f"{name} copy", f"moved/{name}")
            backend.delete(name)
            assert backend.exists(name) is False
        assert everything(backend) == {f"moved/{name}": named(name) for name in awkward}
        assert backend.delete_many(f"moved/{name}" for name in awkward) == len(awkward)
        assert backend.list() == []

    def test_awkward_identifiers_in_batches_and_streams(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        awkward = awkward_names(subject)
        assert backend.write_many((name, named(name)) for name in awkward) == len(awkward)
        for name in awkward:
            with backend.open(name) as reader:
                assert reader.read() == named(name)
            with backend.open(name, "wb") as writer:
                writer.write(b"new " + named(name))
        assert everything(backend) == {name: b"new " + named(name) for name in awkward}

    def test_two_spellings_are_two_objects(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("exact names")
        flat = [name for twins in TWINS for name in twins]
        fill(backend, *flat)
        assert everything(backend) == {name: named(name) for name in flat}
        backend.delete("Case")
        backend.delete("e\u0301x")
        assert "CASE" in backend.list()
        assert backend.read("\u00e9x") == named("\u00e9x")

    def test_long_identifiers_round_trip_or_are_refused(
        self, subject: Subject, backend: StorageBackend
    ) -> None:
        certain = ["s" * 200, "é" * 100, "/".join(["d" * 100] * 5)]
        fill(backend, *certain)
        # The limit of a file name is 255 bytes, of an identifier 1,024; a prefix counts too.
        for name in (
            "n" * 255,
            "n" * 256,
            "/".join(["e" * 127] * 8),
            "/".join(["é" * 50] * 10) + "/12345",
            "x" * 1024,
        ):
            if not subject.has("long names") and max(map(len, encode(name).split(b"/"))) > 255:
                continue
            try:
                fill(backend, name)
            except InvalidIdentifierError:
                assert backend.exists(name) is False
            else:
                certain.append(name)
        assert everything(backend) == {name: named(name) for name in certain}

    def test_names_that_are_not_utf8_round_trip_or_are_refused(self, backend: StorageBackend) -> None:
        kept = []
        for name in ("\udcff", "caf\udce9", "a/\udc80b/c"):
            try:
                fill(backend, name)
            except InvalidIdentifierError:
                assert backend.exists(name) is False
                with pytest.raises(InvalidIdentifierError):
                    backend.read(name)
            else:
                kept.append(name)
        assert everything(backend) == {name: named(name) for name in kept}


class InvalidIdentifiers(Topic):
    """Every method refuses invalid identifiers before any I/O, and never repairs them."""

    def calls(self, backend: StorageBackend, folder: Path) -> dict[str, Callable[[str], Any]]:
        """Calls of all methods, with the identifier as each of their arguments."""
        fresh = folder / "upload"
        fresh.write_bytes(b"upload")
        return {
            "read": backend.read,
            "write": lambda name: backend.write(name, b"x"),
            "delete": backend.delete,
            "get_path": backend.get_path,
            "size": backend.size,
            "copy from": lambda name: backend.copy(name, "new"),
            "copy to": lambda name: backend.copy("old", name),
            "copy onto itself": lambda name: backend.copy(name, name),
            "move from": lambda name: backend.move(name, "new"),
            "move to": lambda name: backend.move("old", name),
            "move onto itself": lambda name: backend.move(name, name),
            "write_stream": lambda name: backend.write_stream(name, _unread()),
            "stat": backend.stat,
            "open": backend.open,
            "open to write": lambda name: backend.open(name, "wb").close(),
            "read_range": lambda name: backend.read_range(name, 0, 1),
            "read_range of nothing": lambda name: backend.read_range(name, 5, 5),
            "read_many": lambda name: list(backend.read_many([name])),
            "write_many": lambda name: backend.write_many([(name, b"x")]),
            "delete_many": lambda name: backend.delete_many([name]),
            "download": lambda name: backend.download(name, folder / "down" / "load"),
            "upload": lambda name: backend.upload(fresh, name),
            "create": lambda name: backend.create(name, b"x"),
            "replace": lambda name: backend.replace(name, b"x", "etag"),
            "checksum": backend.checksum,
            "get_url": backend.get_url,
        }

    def test_every_method_refuses(self, subject: Subject, backend: StorageBackend, tmp_path: Path) -> None:
        subject.require("refusals")
        fill(backend, "old")
        wrong = []
        for method, call in self.calls(backend, tmp_path).items():
            for name in INVALID:
                try:
                    answer = call(name)
                except InvalidIdentifierError as error:
                    if name in OUTSIDE and "outside base directory" not in str(error):
                        wrong.append((method, name, str(error)))
                except BatchError as error:
                    failure = error.failures.get(name)
                    if not isinstance(failure, InvalidIdentifierError) or "many" not in method:
                        wrong.append((method, name, str(error)))
                except UnsupportedOperationError:
                    if method not in {"create", "replace", "get_url"}:
                        wrong.append((method, name, "unsupported"))
                except Exception as error:  # noqa: BLE001 - reported below with the others
                    wrong.append((method, name, repr(error)))
                else:
                    wrong.append((method, name, repr(answer)))
        assert wrong == []
        assert everything(backend) == {"old": named("old")}
        assert not (tmp_path / "down" / "load").exists()

    def test_refused_identifiers_do_not_exist(self, subject: Subject, backend: StorageBackend) -> None:
        fill(backend, "a/b", "b", "a.b")
        if subject.has("refusals"):
            assert [name for name in INVALID if backend.exists(name) is not False] == []
        assert backend.exists("a/b") is True

    def test_refusal_names_the_identifier(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("refusals")
        for name in ("../secret", "a//b", "/abs"):
            with pytest.raises(InvalidIdentifierError) as caught:
                backend.read(name)
            assert isinstance(caught.value, ValueError)
            assert caught.value.identifier == name
            assert repr(name) in str(caught.value)

    def test_source_of_a_refused_write_is_not_read(self, subject: Subject, backend: StorageBackend) -> None:
        subject.require("refusals")
        subject.require("content")
        source = _unread()
        with pytest.raises(InvalidIdentifierError):
            backend.write("../a", source)
        with pytest.raises(InvalidIdentifierError):
            backend.write_stream("a/../../b", source)


class Directories(Topic):
    """An identifier with objects beneath it."""

    def test_objects_beneath_an_object(self, subject: Subject, backend: StorageBackend) -> None:
        fill(backend, "a", "folder/x")
        if has_directories(backend):
            calls: tuple[Callable[[], Any], ...] = (
                lambda: backend.write("a/b", b"x"),
                lambda: backend.write("a/b/c", b"x"),
                lambda: backend.write_stream("a/b", _unread(b"x")),
                lambda: backend.copy("folder/x", "a/b"),
                lambda: backend.move("folder/x", "a/b"),
                lambda: backend.move("a", "a/b"),
            )
            for call in calls:
                with pytest.raises(AlreadyExistsError):
                    call()
            assert everything(backend) == {name: named(name) for name in ("a", "folder/x")}
            return
        subject.require("beneath")
        fill(backend, "a/b", "a/b/c", "folder")
        assert everything(backend) == {
            name: named(name) for name in ("a", "a/b", "a/b/c", "folder", "folder/x")
        }
        backend.delete("a/b")
        backend.move("a", "a/b")
        assert names(backend.scan()) == ["a/b", "a/b/c", "folder", "folder/x"]

    def test_nothing_is_beneath_an_object(self, subject: Subject, backend: StorageBackend) -> None:
        fill(backend, "a")
        assert backend.exists("a/b") is False
        for call in (
            backend.read,
            backend.size,
            backend.stat,
            backend.open,
            backend.checksum,
            *([backend.delete] if subject.has("missing delete") else []),
        ):
            with pytest.raises(FileNotFoundError):
                call("a/b")
        if subject.has("beneath") or has_directories(backend):
            assert backend.delete_many(["a/b"]) == 1
        assert everything(backend) == {"a": named("a")}

    def test_directory_is_no_object(self, subject: Subject, backend: StorageBackend, tmp_path: Path) -> None:
        fill(backend, "d/sub/x", "other")
        kind = NotAFileError if has_directories(backend) else FileNotFoundError
        calls: dict[str, Callable[[str], Any]] = {
            "read": backend.read,
            "size": backend.size,
            "stat": backend.stat,
            "open": backend.open,
            "delete": backend.delete,
            "checksum": backend.checksum,
            "read_range": lambda name: backend.read_range(name, 0, 1),
            "copy": lambda name: backend.copy(name, "new"),
            "copy onto itself": lambda name: backend.copy(name, name),
            "move": lambda name: backend.move(name, "new"),
            "move onto itself": lambda name: backend.move(name, name),
            "download": lambda name: backend.download(name, tmp_path / "down"),
        }
        if kind is FileNotFoundError and not subject.has("missing delete"):
            del calls["delete"]
        wrong = []
        for method, call in calls.items():
            for name in ("d", "d/sub"):
                try:
                    wrong.append((method, name, repr(call(name))))
                except kind:
                    continue
                except OSError as error:
                    wrong.append((method, name, repr(error)))
        assert wrong == []
        assert backend.exists("d") is False
        assert everything(backend) == {name: named(name) for name in ("d/sub/x", "other")}

    def test_write_onto_a_directory(self, subject: Subject, backend: StorageBackend) -> None:
        fill(backend, "d/sub/x", "other")
        if not has_directories(backend):
            subject.require("beneath")
            fill(backend, "d")
            assert names(backend.scan()) == ["d", "d/sub/x", "other"]
            return
        calls: tuple[Callable[[], Any], ...] = (
            lambda: backend.write("d", b"x"),
            lambda: backend.write_stream("d/sub", _unread(b"x")),
            lambda: backend.copy("other", "d"),
            lambda: backend.move("other", "d"),
            lambda: backend.move("d/sub/x", "d"),
        )
        for call in calls:
            with pytest.raises((NotAFileError, AlreadyExistsError)):
                call()
        assert everything(backend) == {name: named(name) for name in ("d/sub/x", "other")}

    def test_empty_directory_is_no_obstacle(self, backend: StorageBackend) -> None:
        fill(backend, "d/sub/x", "e/x", "f/x", "g/x")
        for name in ("d/sub/x", "e/x", "f/x", "g/x"):
            backend.delete(name)
        assert backend.list() == []
        assert [backend.exists(name) for name in ("d", "d/sub", "e")] == [False] * 3
        fill(backend, "d")
        backend.write_stream("e", _unread(b"stream"))
        backend.copy("d", "f")
        backend.move("d", "g")
        assert everything(backend) == {"e": b"stream", "f": named("d"), "g": named("d")}

    def test_object_gives_way_to_a_directory(self, backend: StorageBackend) -> None:
        fill(backend, "a")
        backend.delete("a")
        fill(backend, "a/b/c")
        backend.delete("a/b/c")
        fill(backend, "a/b")
        assert everything(backend) == {"a/b": named("a/b")}


def awkward_names(subject: Subject) -> list[str]:
    """Those of `AWKWARD` that the store can hold."""
    return [name for name in AWKWARD if subject.has("newlines") or "\n" not in name]


def _unread(content: bytes = b"") -> Any:
    """A source that must not be read, unless content is given."""

    def watch() -> None:
        assert content, "the source of a refused write was read"

    return Source(content, watch=watch)
