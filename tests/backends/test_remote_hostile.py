"""Servers that break the protocol, lie or fall silent: an error of ours in bounded time and memory, and never wrong bytes."""

from __future__ import annotations

import io
import itertools
import os
import stat
import struct
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import paramiko
import pytest

from storage_backend import (
    BatchError,
    CachedStorage,
    IntegrityError,
    InvalidIdentifierError,
    RemoteStorage,
    SourceChangedError,
    StorageError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.backends.remote import server_side, sftp_directories
from storage_backend.backends.remote.sftp_packets import (
    ATTRS,
    CLOSE,
    DATA,
    EOF,
    FSTAT,
    HANDLE,
    MAX_PACKET,
    NAME,
    OK,
    OPEN,
    OPENDIR,
    READ,
    READDIR,
    REALPATH,
    STAT,
    STATUS,
    VERSION,
    WRITE,
    text,
)
from storage_backend.testing.subject import same
from tests.conftest import unavailable
from tests.servers import ServerUnavailableError
from tests.sftp_speaker import (
    CONTENT,
    DIRECTORY,
    FILE,
    Answer,
    BareFolderSpeaker,
    Hostile,
    Speaker,
    attributes,
    names,
    number,
    packet,
    raw,
    replied,
    status,
)
from tests.ssh_servers import OpenSSH, SSHPlace, make_key, shell_script
from tests.tiers import few

LINK = stat.S_IFLNK | 0o777

Serve = Callable[..., RemoteStorage]


@pytest.fixture(scope="module")
def host_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"), name="host")


@pytest.fixture
def serve(host_key: Path, tmp_path: Path) -> Iterator[Serve]:
    """`serve({kind: answer}, **config)`: a backend whose server answers so."""
    servers: list[Hostile] = []
    backends: list[RemoteStorage] = []
    known = tmp_path / "known_hosts"

    def start(
        answers: dict[int, Answer], base: str = "/base", *, root: Path | None = None, **more: Any
    ) -> RemoteStorage:
        server = (
            Hostile(host_key, Speaker, answers)
            if root is None
            else Hostile(host_key, BareFolderSpeaker, answers, root)
        )
        servers.append(server)
        public = " ".join(Path(f"{host_key}.pub").read_text().split()[:2])
        known.write_text(f"[127.0.0.1]:{server.port} {public}\n")
        config: Any = {
            "user": "u",
            "endpoints": [["127.0.0.1", server.port]],
            "password": "p",
            "agent": False,
            "known_hosts": str(known),
            "connection_timeout": 20.0,
            "io_timeout": 10.0,
            **more,
        }
        backend = RemoteStorage(config, base, auto_connect=False)
        backends.append(backend)
        return backend

    yield start
    for backend in backends:
        backend.close()
    for server in servers:
        server.close()


def test_honest_speaker_is_read(serve: Serve) -> None:
    backend = serve({})
    assert backend.read("a") == CONTENT
    assert [(info.identifier, info.size) for info in backend.scan()] == [("a", len(CONTENT))]
    assert backend.read_range("a", 3, 5) == CONTENT[3:5]
    assert not backend.exists("b")


HELLOS = {
    "version 6": number(5) + bytes((VERSION,)) + number(6),
    "version 2": number(5) + bytes((VERSION,)) + number(2),
    "no version": number(1) + bytes((VERSION,)),
    "empty": number(0),
    "a status": status(0, OK),
    "a greeting": b"Welcome to this machine!\n",
    "huge": number(1 << 31) + bytes((VERSION,)) + b"x" * 100,
    "cut extension": number(9) + bytes((VERSION,)) + number(3) + number(5),
    "extension of 4 GiB": number(13) + bytes((VERSION,)) + number(3) + number((1 << 32) - 1) + b"abcd",
}


@pytest.mark.parametrize("hello", few(HELLOS, 3))
def test_beginning_that_is_no_sftp_is_no_endpoint(serve: Serve, hello: str) -> None:
    backend = serve({VERSION: raw(HELLOS[hello])}, io_timeout=3.0)
    with pytest.raises(UnavailableError):
        backend.read("a")


@pytest.mark.soak
def test_silence_at_the_beginning_is_no_endpoint(serve: Serve) -> None:
    with pytest.raises((UnavailableError, StorageTimeoutError)):
        serve({VERSION: raw(None)}, io_timeout=1.0).read("a")


HOMES = {
    "none": names,
    "two": lambda request: names(request, (b"/a", attributes()), (b"/b", attributes())),
    "empty": lambda request: names(request, (b"", attributes())),
    "NUL": lambda request: names(request, (b"/a\0b", attributes())),
    "a handle": lambda request: packet(HANDLE, request, text(b"x")),
    "end": lambda request: status(request, EOF),
}


@pytest.mark.parametrize("home", few(HOMES, 2))
def test_home_directory_that_makes_no_sense_is_no_endpoint(serve: Serve, home: str) -> None:
    backend = serve({REALPATH: replied(HOMES[home])}, base="relative")
    with pytest.raises(UnavailableError):
        backend.read("a")


ANSWERS: dict[str, Callable[[int], bytes]] = {
    "empty packet": lambda _: number(0),
    "packet without a number": lambda _: number(2) + b"ab",
    "oversize packet": lambda request: number(MAX_PACKET + 1) + bytes((STATUS,)) + number(request),
    "packet of 4 GiB": lambda request: (
        number((1 << 32) - 1) + bytes((STATUS,)) + number(request) + b"x" * 1000
    ),
    "another's number": lambda request: status(request + 1000, OK),
    "garbage": lambda _: b"\xff" * 4096,
    "unknown kind": lambda request: packet(250, request, b""),
    "wrong kind": lambda request: packet(VERSION, request, b""),
    "status without a code": lambda request: packet(STATUS, request, b""),
    "status cut in the code": lambda request: packet(STATUS, request, b"\0\0"),
    "status with words that are too long": lambda request: packet(
        STATUS, request, number(4) + number(1 << 31) + b"x"
    ),
    "status without words": lambda request: packet(STATUS, request, number(4)),
    "status of an unknown code": lambda request: status(request, 12345, b"\xff\xfe"),
    "status OK": lambda request: status(request, OK),
    "handle of 10 kB": lambda request: packet(HANDLE, request, text(b"h" * 10_000)),
    "handle cut": lambda request: packet(HANDLE, request, number(100) + b"h"),
    "attributes cut": lambda request: packet(ATTRS, request, number(1) + b"\0\0"),
    "attributes with 4 Gi extensions": lambda request: packet(
        ATTRS, request, number(0x80000000) + number((1 << 32) - 1)
    ),
    "size of 2**64 - 1": lambda request: packet(ATTRS, request, attributes(size=(1 << 64) - 1)),
}


@pytest.mark.parametrize(
    ("kind", "answer"),
    few(itertools.product((READ, OPEN, FSTAT, STAT, OPENDIR, READDIR), ANSWERS), 4),
)
def test_answer_that_makes_no_sense_is_an_error(serve: Serve, kind: int, answer: str) -> None:
    # The base directory is looked for by STAT too.
    odd = ANSWERS[answer]

    def act(speaker: Speaker, request: int, body: bytes) -> bytes:
        return (
            speaker.honest(STAT, request, body) if kind == STAT and body.endswith(b"/base") else odd(request)
        )

    backend = serve({kind: act})
    verbs: Sequence[Callable[[], object]] = {
        STAT: [lambda: backend.stat("a"), lambda: backend.exists("a")],
        OPENDIR: [
            lambda: list(backend.scan()),
            lambda: list(backend.scan_level()),
            lambda: backend.list("*"),
        ],
        READDIR: [lambda: list(backend.scan()), lambda: list(backend.scan_level())],
    }.get(
        kind,
        [
            lambda: backend.read("a"),
            lambda: list(backend.read_many(["a"])),
            lambda: backend.read_range("a", 1, 9),
        ],
    )
    for verb in verbs:
        try:
            found = verb()
        except StorageError:
            continue
        # A server may say what it likes of a file that it can open, but what is read is what it sent.
        allowed: dict[int, Sequence[object]] = {
            STAT: [False],
            FSTAT: [CONTENT, [("a", CONTENT)], CONTENT[1:9]],
            READDIR: [[]],
        }
        assert found in allowed.get(kind, ()), (found, answer)


SIZES = {"one more": 1, "many more": 100_000}


@pytest.mark.parametrize("more", few(SIZES, 1))
def test_more_data_than_asked_for_is_refused(serve: Serve, more: str) -> None:
    def act(_speaker: Speaker, request: int, body: bytes) -> bytes:
        length = int.from_bytes(body[-4:])
        return packet(DATA, request, text(b"x" * (length + SIZES[more])))

    backend = serve({READ: act})
    for verb in (backend.read, lambda name: backend.read_range(name, 1, 9)):
        with pytest.raises(IntegrityError):
            verb("a")


@pytest.mark.parametrize("data", few([b"", number(0), number(9) + b"x", number(1) + b"xyz", b"\0"]))
def test_data_whose_length_is_wrong_is_refused(serve: Serve, data: bytes) -> None:
    backend = serve({READ: replied(lambda request: packet(DATA, request, data))})
    for verb in (
        backend.read,
        lambda name: backend.read_range(name, 1, 9),
        lambda name: backend.open(name).read(),
    ):
        with pytest.raises(IntegrityError):
            verb("a")


@pytest.mark.parametrize("size", few([1 << 62, (1 << 63) - 1], 1))
def test_size_that_is_a_lie_is_found_out(serve: Serve, size: int) -> None:
    backend = serve({FSTAT: replied(lambda request: packet(ATTRS, request, attributes(size=size)))})
    tracemalloc.start()
    try:
        for verb in (
            backend.read,
            lambda name: backend.open(name).read(),
            lambda name: backend.read_range(name, 0),
        ):
            with pytest.raises(StorageError):
                verb("a")
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("end", few([50_000, 0, 99_999], 2))
@pytest.mark.parametrize("size", few([100_000, 3 << 20], 1))
def test_early_end_of_file_is_never_the_whole_object(
    serve: Serve, tmp_path: Path, size: int, end: int
) -> None:
    def act(_speaker: Speaker, request: int, body: bytes) -> bytes:
        start, length = struct.unpack(">QI", body[-12:])
        data = bytes(max(min(length, end - start), 0))
        return packet(DATA, request, text(data)) if data else status(request, EOF)

    facts = attributes(size=size)
    backend = serve(
        {READ: act, STAT: _of_object(facts), FSTAT: replied(lambda request: packet(ATTRS, request, facts))}
    )
    cached = CachedStorage(backend, cache_dir=tmp_path / "cache")
    ways: Sequence[Callable[[], object]] = [
        lambda: backend.read("a"),
        lambda: backend.open("a").read(),
        lambda: backend.read_range("a", 0, size),
        lambda: backend.download("a", tmp_path / "a"),
        lambda: backend.checksum("a"),
        lambda: backend.copy("a", "b"),
        lambda: cached.read("a"),
    ]
    for way in ways:
        with pytest.raises(SourceChangedError, match=f"after {end:,} of {size:,} bytes"):
            way()
    for storage in (backend, cached):
        with pytest.raises(BatchError) as batch:
            list(storage.read_many(["a"]))
        assert isinstance(batch.value.failures["a"], SourceChangedError)
    assert not (tmp_path / "a").exists()


def test_file_of_unknown_size_is_read_whole_or_refused(serve: Serve) -> None:
    facts = struct.pack(">II", 4, FILE)
    backend = serve({FSTAT: replied(lambda request: packet(ATTRS, request, facts))})
    assert backend.read("a") == CONTENT
    assert list(backend.read_many(["a"])) == [("a", CONTENT)]
    cut = serve(
        {
            FSTAT: replied(lambda request: packet(ATTRS, request, facts)),
            READ: lambda _speaker, request, body: (
                status(request, EOF) if body[-5] else packet(DATA, request, text(CONTENT[:9]))
            ),
        }
    )
    with pytest.raises(SourceChangedError, match=r"after 9 of 4,096 bytes"):
        cut.read("a")
    for way in (
        lambda: backend.open("a").read(),
        lambda: backend.read_range("a", 0, 3),
        lambda: backend.copy("a", "b"),
    ):
        with pytest.raises(StorageError, match="does not report the size"):
            way()


def test_times_that_may_be_of_before_1970_are_unknown(serve: Serve) -> None:
    for modified in (0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        facts = attributes(modified=modified)
        backend = serve({STAT: _of_object(facts)})
        found = backend.stat("a").modified
        assert (None if found is None else found.timestamp()) == (modified if modified < 1 << 31 else None)


def _of_object(facts: bytes) -> Answer:
    def act(speaker: Speaker, request: int, body: bytes) -> bytes:
        return packet(ATTRS, request, facts) if body.endswith(b"/a") else speaker.honest(STAT, request, body)

    return act


def listing_of(*entries: tuple[bytes, bytes]) -> Answer:
    """The base directory has these; others have nothing."""

    def act(speaker: Speaker, request: int, body: bytes) -> bytes:
        honest = speaker.honest(READDIR, request, body)
        root = body[4:] == b"/base"
        return names(request, *entries) if root and honest[4] == NAME else status(request, EOF)

    return act


NAMES = (
    b"",
    b"/",
    b"/etc/passwd",
    b"../x",
    b"x/y",
    b"..",
    b".",
    b"a\0b",
    b"x/",
    b"//",
    b".~sb-x",
    b"n" * 256,
)


@pytest.mark.parametrize(
    ("name", "mode"), few(itertools.product(NAMES[3:] + NAMES[:3], (LINK, FILE, DIRECTORY)), 2)
)
def test_name_that_no_directory_can_have_is_reported_and_never_followed(
    serve: Serve, name: bytes, mode: int
) -> None:
    asked: list[bytes] = []

    def watch(kind: int) -> Answer:
        def act(speaker: Speaker, request: int, body: bytes) -> bytes:
            asked.append(body[4 : 4 + int.from_bytes(body[:4])])
            return speaker.honest(kind, request, body)

        return act

    answers = {
        READDIR: listing_of((b"a", attributes()), (name, attributes(mode=mode))),
        OPENDIR: watch(OPENDIR),
    }
    backend = serve(answers)
    for verb in (backend.scan, backend.scan_level):
        reports: list[StorageError] = []
        assert [
            info if isinstance(info, str) else info.identifier for info in verb("", on_skip=reports.append)
        ] == ["a"]
        assert len(reports) == (0 if name in {b".", b"..", b".~sb-x"} else 1)
        assert all(isinstance(report, InvalidIdentifierError) for report in reports)
    assert backend.list("*") == backend.list() == ["a"]
    assert set(asked) == {b"/base"}
    if len(name) < 256:
        backend.cleanup(0)
    assert {path for path in asked if not path.startswith(b"/base/.~sb-")} == {b"/base"}


def test_names_that_come_twice_are_listed_once(serve: Serve) -> None:
    entries = [(b"d%d" % (index % 50), attributes(mode=DIRECTORY)) for index in range(100)]
    entries += [(b"a", attributes()), (b"a", attributes(size=1)), (b"d1", attributes()), (b"a", attributes())]
    backend = serve({READDIR: listing_of(*entries)})
    assert [info.identifier for info in backend.scan()] == ["a", "d1"]
    level = list(backend.scan_level())
    assert len(level) == 51
    assert len({each if isinstance(each, str) else each.identifier for each in level}) == 51


def test_listing_that_repeats_for_ever_is_refused(serve: Serve) -> None:
    entries = [(b"x%d" % index, attributes()) for index in range(300)]
    backend = serve({READDIR: replied(lambda request: names(request, *entries))})
    with pytest.raises(IntegrityError, match="goes on"):
        backend.list()


def test_listing_without_end_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_directories, "MAX_NAMES", 5_000)

    def act(_speaker: Speaker, request: int, _body: bytes) -> bytes:
        return names(request, *((b"%d-%d" % (request, index), attributes()) for index in range(100)))

    with pytest.raises(IntegrityError, match="goes on"):
        serve({READDIR: act}).list()


@pytest.mark.soak
def test_directories_without_end_are_left_where_no_identifier_leads(serve: Serve) -> None:
    def act(speaker: Speaker, request: int, body: bytes) -> bytes:
        honest = speaker.honest(READDIR, request, body)
        return names(request, (b"d" * 200, attributes(mode=DIRECTORY))) if honest[4] == NAME else honest

    backend = serve({READDIR: act})
    reports: list[StorageError] = []
    assert list(backend.scan(on_skip=reports.append)) == []
    assert len(reports) == 1
    assert backend.cleanup(0) == 0


@pytest.mark.parametrize("count", few([(1 << 32) - 1, 0, 2, 1000], 1))
def test_count_of_names_that_is_a_lie_brings_no_wrong_name(serve: Serve, count: int) -> None:
    backend = serve({READDIR: replied(lambda request: names(request, (b"a", attributes()), count=count))})
    if count:
        with pytest.raises(IntegrityError):
            backend.list()
    else:
        assert backend.list() == []  # the end, to OpenSSH's client too


@pytest.mark.soak
@pytest.mark.parametrize("kind", few([READ, OPEN, STAT, READDIR, WRITE, CLOSE], 1))
def test_server_that_never_answers_is_given_up(serve: Serve, kind: int) -> None:
    def act(speaker: Speaker, request: int, body: bytes) -> bytes | None:
        return speaker.honest(STAT, request, body) if kind == STAT and body.endswith(b"/base") else None

    backend = serve({kind: act}, io_timeout=0.5)
    verbs: dict[int, Callable[[], object]] = {
        STAT: lambda: backend.stat("a"),
        READDIR: backend.list,
        WRITE: lambda: backend.write("a", b"x"),
        CLOSE: lambda: backend.write("a", b"x"),
    }
    verb = verbs.get(kind, lambda: backend.read("a"))
    with pytest.raises((StorageTimeoutError, UnavailableError)):
        verb()


def test_limits_that_make_no_sense_are_not_followed(serve: Serve) -> None:
    def limits(speaker: Speaker, request: int, body: bytes) -> bytes:
        return packet(201, request, struct.pack(">QQQQ", 1, 1, 1, 1))

    hello = number(3) + text(b"limits@openssh.com") + text(b"1")
    backend = serve({VERSION: raw(number(len(hello) + 1) + bytes((VERSION,)) + hello), 200: limits})
    assert backend.read("a") == CONTENT
    assert backend._failover.connection().session.write_length >= 1024


# The server's shell

FINDS = {
    "garbage": "echo garbage",
    "failure": "exit 1",
    "words alone": "echo 'find: no' >&2; exit 2",
    "half": '{real} "$@" | head -c 60',
    "noise": "yes | head -c 3000000",
}


@pytest.mark.parametrize("way", few(FINDS, 2))
def test_find_that_fails_means_listing_by_sftp(lying: Callable[[str, str], SSHPlace], way: str) -> None:
    place = lying("find", FINDS[way])
    files = {"a", "b/c", "b!", "d/e/f"}
    for name in files:
        (place.local / name).parent.mkdir(parents=True, exist_ok=True)
        (place.local / name).write_bytes(b"x")
    config: Any = place.config()
    with closing(RemoteStorage(config, place.base)) as backend:
        assert "find" in backend.check_connection()
        assert [(info.identifier, info.size) for info in backend.scan()] == [
            (name, 1) for name in sorted(files)
        ]
        assert backend.list() == sorted(files)
        assert backend.list("b/**") == ["b/c"]


def record(name: str) -> str:
    return f"ff{1:>20}{'1600000000.0000000000':>23}{name}\\0"


ORDERS = {
    "out of order": [record("b"), record("a")],
    "twice": [record("a"), record("a")],
    "absolute": [record("/etc/passwd"), record("a")],
    "outside": [record("../x"), record("a")],
    "empty": [record("a"), record("")],
}


@pytest.mark.parametrize("way", few(ORDERS, 2))
def test_sort_that_lies_brings_no_path_outside_and_no_disorder(
    lying: Callable[[str, str], SSHPlace], way: str
) -> None:
    # All of what find prints is taken first, or its status would tell of the broken pipe.
    printed = "".join(ORDERS[way]).replace("%", "%%")
    place = lying("sort", f"cat >/dev/null; printf '{printed}'")
    (place.local / "a").write_bytes(b"x")
    (place.local / "b").write_bytes(b"x")
    config: Any = place.config()
    with closing(RemoteStorage(config, place.base)) as backend:
        assert "find" in backend.check_connection()
        if way in {"absolute", "outside"}:
            reports: list[StorageError] = []
            assert [info.identifier for info in backend.scan(on_skip=reports.append)] == ["a"]
            assert [type(report) for report in reports] == [InvalidIdentifierError]
        else:
            with pytest.raises(IntegrityError, match="out of order"):
                list(backend.scan())


SUMS = {
    "garbage": "echo garbage",
    "failure": "exit 1",
    "not hexadecimal": "printf '%s  %s\\0' " + "z" * 64 + ' "$3"',
    "too short": "printf '%s  %s\\0' abc \"$3\"",
    "another file": "printf '%s  %s\\0' " + "0" * 64 + " /etc/passwd",
    "silence": "exit 0",
}


@pytest.mark.parametrize("way", few(SUMS, 2))
def test_digest_that_makes_no_sense_is_made_out_by_reading(
    lying: Callable[[str, str], SSHPlace], way: str
) -> None:
    place = lying("sha256sum", SUMS[way])
    content = os.urandom(3 << 20)
    config: Any = place.config()
    with closing(RemoteStorage(config, place.base)) as backend:
        assert "sha256" in backend.check_connection()
        backend.write_many([("small", b"x"), ("large", content)], verify=True)
        assert backend.checksum("large") == sha256(content).hexdigest()
        assert same(backend.read("large"), content)


def test_digest_that_is_a_lie_refuses_a_verified_write(lying: Callable[[str, str], SSHPlace]) -> None:
    place = lying("sha256sum", "for f; do :; done; printf '%s  %s\\0' " + "0" * 64 + ' "$f"')
    config: Any = place.config()
    with closing(RemoteStorage(config, place.base)) as backend:
        with pytest.raises(IntegrityError):
            backend.write_stream("large", io.BytesIO(os.urandom(3 << 20)), verify=True)
        assert not backend.exists("large")
        assert os.listdir(place.local) == []  # noqa: PTH208 - temporary names too


@pytest.mark.parametrize("way", few(["exit 0", "exit 1", 'for f; do :; done; head -c 1000 >"$f"']))
def test_cp_that_lies_copies_nothing_wrong(
    lying: Callable[[str, str], SSHPlace], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_side, "LARGE_COPY", 1 << 20)
    place = lying("cp", way)
    content = os.urandom(3 << 20)
    config: Any = place.config()
    with closing(RemoteStorage(config, place.base)) as backend:
        backend.write("a", content)
        assert backend._failover.connection().features.copy
        backend.copy("a", "b")
        assert same(backend.read("b"), content)
        assert sorted(os.listdir(place.local)) == ["a", "b"]  # noqa: PTH208 - temporary names too


@pytest.mark.parametrize("kind", few(["mute", "noisy", "csh-like", "hung", "slow"], 3))
def test_shell_of_another_kind_is_no_obstacle(tmp_path: Path, kind: str) -> None:
    try:
        server = OpenSSH(command_wrapper=shell_script(tmp_path, kind))
    except ServerUnavailableError as error:
        unavailable(str(error))
    try:
        with server.place() as place:
            config: Any = place.config()
            with closing(RemoteStorage(config, place.base)) as backend:
                content = os.urandom(2 << 20)
                backend.write("a/b", content)
                assert [(info.identifier, info.size) for info in backend.scan()] == [("a/b", 2 << 20)]
                assert backend.list() == ["a/b"]
                assert backend.checksum("a/b") == sha256(content).hexdigest()
                assert backend.copy("a/b", "c")
                assert same(backend.read("c"), content)
                assert backend.delete_many(["a/b", "c"]) == 2
    finally:
        server.stop()


def test_command_that_is_refused_once_the_shell_is_known_means_sftp() -> None:
    try:
        server = OpenSSH(extra=["MaxSessions 2"])
    except ServerUnavailableError as error:
        unavailable(str(error))
    try:
        with server.place() as place:
            config: Any = place.config()
            with closing(RemoteStorage(config, place.base)) as backend:
                backend.write("a", b"x")
                assert "find" in backend.check_connection()
                connection = backend._failover.connection()
                held = []
                # The session of the probe may not have ended at the server's yet, so as many as there are.
                with suppress(paramiko.ChannelException):
                    while True:
                        held.append(connection._command_channel())
                try:
                    assert backend.list() == ["a"]
                    assert [info.identifier for info in backend.scan()] == ["a"]
                    assert backend._failover.connection() is connection
                finally:
                    for channel in held:
                        channel.close()
    finally:
        server.stop()
