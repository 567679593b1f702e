"""Names that a shell, a tool or a terminal would take for something else: all verbs, over SFTP and by the server's tools."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    BatchError,
    ConfigurationError,
    InvalidIdentifierError,
    NotFoundError,
    RemoteStorage,
    StorageError,
)
from storage_backend.identifiers import decode, encode, is_valid
from storage_backend.testing.subject import same
from storage_backend.testing.topics.identifiers import AWKWARD, INVALID, TWINS
from tests.conftest import unavailable
from tests.servers import ServerUnavailableError
from tests.ssh_servers import OpenSSH, SSHPlace, sftp_server
from tests.tiers import few

pytestmark = pytest.mark.soak  # the conformance suite has a hundred awkward names over each server

COUNT = 10_000
SINGLY = 200
CANARY = "sb-canary"
# Each makes a file of that name where it is run, if a shell or tool takes it for more than a name.
COMMANDS = (
    "$(touch {0})",
    "`touch {0}`",
    ";touch {0};",
    "|touch {0}",
    "||touch {0}",
    "&touch {0}&",
    "\ntouch {0}\n",
    "$(>{0})",
    ">{0}",
    "';touch {0};'",
    '";touch {0};"',
    "'$(touch {0})'",
    '"$(touch {0})"',
    "\\';touch {0};#",
    "'\"'\"';touch {0};'\"'\"'",
    "${{x:-$(touch {0})}}",
    "$(touch${{IFS}}{0})",
    ")\ntouch {0}\n(",
    "a[$(touch {0})]",
)
OPTIONS = (
    "--checkpoint-action=exec=touch {0}",
    "--use-compress-program=touch {0}",
    "--to-command=touch {0}",
    "-exec touch {0} ;",
    "-fprint {0}",
    "-delete",
    "--help",
    "--files0-from=-",
    "--target-directory=.",
    "-rf",
    "--",
    "-",
    "-n",
    "!",
    "(",
)
PIECES = (
    *(
        "'",
        '"',
        "`",
        "$",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "|",
        "&",
        ";",
        "*",
        "?",
        "!",
        "#",
        "~",
        "=",
        "%",
        "\\",
    ),
    *(" ", "  ", "\t", "\n", "\r", "\r\n", "\x01", "\x07", "\x1b[2J", "\x7f", "\x80", "\u2028", "\ufeff"),
    *(
        "a",
        "b",
        "Z",
        "0",
        "_",
        "-",
        ".",
        "..",
        "é",
        "e\u0301",
        "ß",
        "日本",
        "😀",
        "👩\u200d👩\u200d👧",
        "\U0010ffff",
        "\u202e",
    ),
    *("\udcff", "\udc80", "\udce9", "\udcf0\udc9f", "\udced\udca0\udc80", "\udcc0\udcaf"),
    *("$HOME", "${PATH}", "$IFS", "%s", "%n", "\\0", "\\n", "\\x00", "EOF", "~root"),
)

Make = Callable[..., RemoteStorage]


def generated(canary: Path, count: int = COUNT, seed: int = 20_261_121) -> list[str]:
    """So many names, none of which is a directory above another."""
    chosen = random.Random(seed)
    commands = [command.format(CANARY) for command in (*COMMANDS, *OPTIONS)]
    found: dict[str, None] = {}
    directories: set[str] = set()
    # As a whole these spell an absolute path, "/" and all.
    for command in COMMANDS:
        found[f"whole{command.format(canary)}"] = None
    for name in list(found):
        directories.update(_above(name))

    def segment() -> str:
        kind = chosen.random()
        if kind < 0.3:
            name = chosen.choice(commands) + chosen.choice(("", " ", "\n", str(chosen.randrange(10**6))))
        elif kind < 0.35:
            name = chosen.choice(PIECES) * 255
        else:
            name = "".join(chosen.choices(PIECES, k=chosen.randrange(1, 12)))
        if kind < 0.9:
            return name
        # Of 255 bytes, which is what file systems take; cut anywhere, in the middle of a character too.
        return decode((encode(name) * 255)[:255])

    # Some hundred directories that many names share: to make and remove one for each is what would take the time.
    shared = ["/".join(segment() for _ in range(chosen.choice((1, 1, 2, 4)))) for _ in range(200)]
    while len(found) < count:
        name = segment()
        if chosen.random() < 0.5:
            name = f"{chosen.choice(shared)}/{name}"
        above = _above(name)
        if (
            is_valid(name, surrogates=True, max_segment_bytes=255)
            and name not in directories
            and not any(directory in found for directory in above)
        ):
            found[name] = None
            directories.update(above)
    return list(found)


def _above(name: str) -> list[str]:
    return [name[:at] for at, character in enumerate(name) if character == "/"]


@pytest.fixture(scope="module")
def tools_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSSH]:
    """`sshd` whose SFTP can neither replace, link nor copy, so that its shell has to."""
    script = tmp_path_factory.mktemp("wrapper") / "wrapper"
    try:
        program = sftp_server()
        script.write_text(
            f'#!/bin/sh\ncase "$SSH_ORIGINAL_COMMAND" in *sftp-server*) exec {program} -P posix-rename,hardlink,copy-data;; esac\n'
            'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n'
        )
        script.chmod(0o755)
        server = OpenSSH(command_wrapper=script)
    except ServerUnavailableError as error:
        unavailable(str(error))
    yield server
    server.stop()


@pytest.fixture(params=few(["shell", "sftp", "tools"], 1))
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """`make(place=None, base=None)`: a backend whose server has a shell, SFTP alone, or needs its shell for most."""
    server: OpenSSH = request.getfixturevalue(
        "tools_server" if request.param == "tools" else "openssh_server"
    )
    made: list[RemoteStorage] = []
    with server.place() as place:

        def make(base: str | None = None, **more: Any) -> RemoteStorage:
            config: Any = place.config(shell="never" if request.param == "sftp" else "auto", **more)
            backend = RemoteStorage(config, place.base if base is None else base)
            made.append(backend)
            return backend

        make.place = place  # type: ignore[attr-defined]  # the tests look at the disk
        make.server = server  # type: ignore[attr-defined]  # likewise
        yield make
        for backend in made:
            backend.close()


def place_of(make: Make) -> SSHPlace:
    place: SSHPlace = make.place  # type: ignore[attr-defined]  # set by the fixture
    return place


@contextmanager
def nothing_executed(make: Make, canary: Path) -> Iterator[None]:
    """No canary comes to be where a command of ours may run."""
    place = place_of(make)
    server: OpenSSH = make.server  # type: ignore[attr-defined]  # set by the fixture
    places = {
        Path.home(),
        Path("/"),
        Path("/tmp"),
        Path.cwd(),
        server.directory,
        server.local,
        place.local,
        canary.parent,
    }
    canaries = [folder / CANARY for folder in places]
    for each in canaries:
        each.unlink(missing_ok=True)
    yield
    assert [str(each) for each in canaries if os.path.lexists(each)] == []


def on_disk(root: Path) -> set[str]:
    """The files beneath a directory, by identifier."""
    top = os.fsencode(root)
    return {
        decode(os.path.relpath(os.path.join(folder, name), top))  # noqa: PTH118 - bytes
        for folder, _, names in os.walk(top)
        for name in names
    }


def content_of(name: str) -> bytes:
    return sha256(encode(name)).digest()


def test_payloads_make_the_canary_where_a_shell_evaluates_them(tmp_path: Path) -> None:
    canary = tmp_path / CANARY
    for command in COMMANDS:
        for spelled in (CANARY, str(canary)):
            payload = command.format(spelled)
            # Each is a danger in one of the ways in which names get into commands carelessly.
            for careless in (
                "echo {}",
                "echo '{}'",
                'echo "{}"',
                "{}",
                'x={}; eval "echo $x"',
                "(echo a{})",
                "false {}",
            ):
                script = careless.replace("{}", payload)
                subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, check=False)
                if canary.exists():
                    break
            assert canary.exists(), payload
            canary.unlink(missing_ok=True)


def test_generated_names_are_of_all_kinds(tmp_path: Path) -> None:
    names = generated(tmp_path / CANARY)
    assert len(set(names)) == COUNT
    assert names == generated(tmp_path / CANARY)
    for kind in ("$(", "`", ";", "\n", "'", '"', "\x1b", "\udcff", "😀", "*"):
        assert sum(kind in name for name in names) > 100, kind
    segments = [segment for name in names for segment in name.split("/")]
    assert sum(len(encode(segment)) == 255 for segment in segments) > 500
    assert sum(segment.startswith("-") for segment in segments) > 100
    assert sum(segment.endswith(" ") for segment in segments) > 100


@pytest.mark.soak
@pytest.mark.parametrize("make", ["shell", "sftp"], indirect=True)  # a command for each would take a minute
def test_ten_thousand_odd_names_in_batches(make: Make, tmp_path: Path) -> None:
    canary = tmp_path / CANARY
    backend = make()
    names = generated(canary)
    contents = {name: content_of(name) for name in names}
    ordered = sorted(names, key=encode)
    with nothing_executed(make, canary):
        assert backend.write_many(contents.items()) == len(names)
        assert same(on_disk(place_of(make).local) == set(names), True)
        assert same(backend.list() == ordered, True)
        assert same([info.identifier for info in backend.scan()] == ordered, True)
        assert same(dict(backend.read_many(names)), contents)
        assert backend.delete_many(names) == len(names)
        assert backend.list() == []
    assert on_disk(place_of(make).local) == set()


def test_odd_names_one_by_one(make: Make, tmp_path: Path, request: Any) -> None:
    canary = tmp_path / CANARY
    backend = make()
    odd = generated(canary)
    # By the server's shell each of some verbs is a process or two.
    count = SINGLY if request.node.callspec.params["make"] != "tools" else 10
    names = [*odd[: len(COMMANDS)], *random.Random(7).sample(odd[len(COMMANDS) :], count)]
    others = {name: f"other {number}/{name[-40:].strip('/')}" for number, name in enumerate(names)}
    others = {
        name: other if is_valid(other, surrogates=True) else f"another {len(other)} {content_of(name).hex()}"
        for name, other in others.items()
    }
    target = tmp_path / "downloaded"
    with nothing_executed(make, canary):
        for name in names:
            content = content_of(name)
            assert backend.write(name, b"old")
            assert backend.write(name, content)
            assert backend.exists(name)
            assert backend.read(name) == content
            assert backend.size(name) == len(content)
            assert backend.stat(name).identifier == name
            assert backend.read_range(name, 3, 7) == content[3:7]
        assert backend.list() == sorted(names, key=encode)
        for name in names[:: len(names) // 20]:
            assert backend.checksum(name) == sha256(content_of(name)).hexdigest()
            assert [info.identifier for info in backend.scan(name)] == [name]
            target.write_bytes(b"uploaded")
            assert backend.upload(target, name)
            target.unlink()
            assert backend.download(name, target)
            assert target.read_bytes() == b"uploaded"
            assert backend.create(name, b"x") is False
            assert backend.delete(name)
            assert backend.create(name, b"created") is True
            assert backend.write_many([(name, content_of(name))], verify=True) == 1
        for name, other in others.items():
            assert backend.copy(name, other)
            assert backend.move(other, other + "+")
            assert backend.read(other + "+") == content_of(name)
            assert not backend.exists(other)
            assert backend.delete(name)
            assert not backend.exists(name)
        assert backend.list() == sorted((f"{other}+" for other in others.values()), key=encode)
    assert on_disk(place_of(make).local) == {f"{other}+" for other in others.values()}


def test_conformance_names_and_patterns(make: Make, tmp_path: Path) -> None:
    backend = make()
    names = [*AWKWARD, *(twin for twins in TWINS for twin in twins), "\udcff", "a/\udc80 ", "x" * 255]
    names = [name for name in names if not any(other.startswith(f"{name}/") for other in names)]
    with nothing_executed(make, tmp_path / CANARY):
        backend.write_many((name, content_of(name)) for name in names)
        assert backend.list() == sorted(names, key=encode)
        for name in names[::8]:
            # Of a literal pattern only its own magic has to be taken away.
            literal = "".join(f"[{character}]" if character in "*?[" else character for character in name)
            assert backend.list(literal) == [name]
            assert [info.identifier for info in backend.scan(name)] == sorted(
                (other for other in names if other.startswith(name)), key=encode
            )
            assert backend.checksum(name, "sha256") == sha256(content_of(name)).hexdigest()


def test_invalid_names_are_refused_before_anything_is_sent(make: Make) -> None:
    backend = make()
    backend.close()
    long = ["x" * 256, "é" * 128, "a/" + "x" * 256, "\udcff" * 256, "/".join(["x" * 200] * 6)]
    for name in [*INVALID, *long]:
        for act in (
            backend.read,
            lambda name: backend.write(name, b"x"),
            lambda name: backend.create(name, b"x"),
            backend.delete,
            lambda name: backend.copy(name, "a"),
            lambda name: backend.copy("a", name),
            lambda name: backend.move(name, "a"),
            lambda name: backend.move("a", name),
            backend.stat,
            backend.size,
            backend.checksum,
            backend.open,
            lambda name: backend.open(name, "wb"),
            lambda name: backend.read_range(name, 0, 1),
            backend.get_path,
            lambda name: backend.download(name, "/nonexistent/x"),
            lambda name: backend.upload("/dev/null", name),
        ):
            with pytest.raises(InvalidIdentifierError):
                act(name)
        assert backend.exists(name) is False
    assert backend.host is None  # nobody has dialled
    for batch in (
        lambda: list(backend.read_many(["x" * 256])),
        lambda: backend.write_many([("x" * 256, b"")]),
        lambda: backend.delete_many(["x" * 256]),
    ):
        with pytest.raises(BatchError):
            batch()


def test_text_is_refused_before_anything_is_touched(make: Make) -> None:
    backend = make()
    backend.write("a", b"old")
    backend.close()
    text: Any = "text"
    for act in (backend.write, backend.create, backend.write_stream):
        with pytest.raises(TypeError):
            act("a", text)
    assert backend.host is None
    with pytest.raises((TypeError, BatchError)):
        backend.write_many([("a", text)])
    assert backend.read("a") == b"old"
    assert on_disk(place_of(make).local) == {"a"}


ODD_BASES = (
    "it's",
    'a "quoted" one',
    " spaces at the ends ",
    "new\nline",
    "ends in a new line\n",
    f"$(touch {CANARY})",
    f"`touch {CANARY}`;touch {CANARY}",
    "-rf",
    "--help",
    "a~b",
    "~",
    "*",
    "[a]",
    "\udcff\udcfe",
    "😀/e\u0301",
    "slash/",
    "slashes///",
    "a/./b/../c",
    "\x1b[2J\r",
    "\\",
)


@pytest.mark.parametrize("odd", few(ODD_BASES, 6))
def test_base_directory_with_an_odd_name(make: Make, tmp_path: Path, odd: str) -> None:
    place = place_of(make)
    if odd == "a/./b/../c":
        (place.local / "a" / "b").mkdir(parents=True)
    with nothing_executed(make, tmp_path / CANARY):
        backend = make(f"{place.base}/{odd}")
        _all_verbs(backend)
        assert (Path(os.path.normpath(place.local / odd)) / "d" / "a'b").read_bytes() == b"content"


@contextmanager
def folder_at_home() -> Iterator[Path]:
    """A folder of our own in the home directory, where relative bases are."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="sb-test ", dir=Path.home()) as name:
        yield Path(name)


@pytest.mark.parametrize("form", ["{}/x y", "~/{}/x y", "./{}/$x", "~/{}/~"])
def test_base_directory_relative_to_the_home_directory(make: Make, form: str) -> None:
    with folder_at_home() as folder:
        backend = make(form.replace("{}", folder.name))
        _all_verbs(backend)
        assert (folder / form.rpartition("/")[2] / "d" / "a'b").read_bytes() == b"content"


def test_home_directory_itself_and_the_root_directory(make: Make) -> None:
    with folder_at_home() as folder:
        (folder / "f").write_bytes(b"x")
        home = make("~")
        assert home.read(f"{folder.name}/f") == b"x"
        assert home.list(f"{folder.name}/*") == [f"{folder.name}/f"]
        for root in (make("/"), make("//")):
            path = str(folder / "f")[1:]
            assert root.read(path) == b"x"
            assert [info.identifier for info in root.scan(f"{path[:-1]}")] == [path]
            assert [info.identifier for info in root.scan(f"{path}")] == [path]
            assert root.checksum(path) == sha256(b"x").hexdigest()
            with pytest.raises(NotFoundError):
                root.read("no such file of ours")


@pytest.mark.parametrize("base", ["~root/x", "~nobody", "~+", "", "a\0b", "\ud800"])
def test_base_directory_that_cannot_be_is_refused(make: Make, base: str) -> None:
    with pytest.raises((ConfigurationError, StorageError), match="remote_base_dir"):
        make(base)


def test_base_directory_that_is_a_file_is_refused(make: Make) -> None:
    place = place_of(make)
    (place.local / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="not a directory"):
        make(f"{place.base}/file")


def _all_verbs(backend: RemoteStorage) -> None:
    names = ["d/a'b", "$(id)", "-", "new\nline"]
    assert backend.write_many((name, b"content") for name in names) == len(names)
    assert backend.list() == sorted(names)
    assert backend.list("*") == sorted(names[1:])
    assert [(info.identifier, info.size) for info in backend.scan("d/")] == [(names[0], 7)]
    assert dict(backend.read_many(names)) == dict.fromkeys(names, b"content")
    assert backend.checksum("-") == sha256(b"content").hexdigest()
    assert backend.copy("-", "--")
    assert backend.move("--", "x/-")
    assert backend.read("x/-") == b"content"
    assert backend.create("-", b"") is False
    assert backend.delete_many(["x/-", *names[1:]]) == 4
    assert backend.list() == [names[0]]
    assert str(backend.check_connection())
