"""A server that lies at random: an error of ours in bounded time and memory, never a wrong byte, and no object is lost.

What nobody can find out is not among the lies: bytes of the right number that are not the file's, and an OK to what was not done.
"""

from __future__ import annotations

import random
import resource
import stat
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from storage_backend import RemoteStorage, StorageError
from storage_backend.backends.remote.sftp_packets import (
    ATTRS,
    DATA,
    EOF,
    EXTENDED_REPLY,
    FAILURE,
    FSTAT,
    HANDLE,
    HARDLINK,
    LIMITS,
    LSTAT,
    NAME,
    NO_SUCH_FILE,
    OPEN,
    PERMISSION_DENIED,
    POSIX_RENAME,
    READ,
    READDIR,
    REALPATH,
    STAT,
    UNSUPPORTED,
    VERSION,
    Fields,
    text,
)
from storage_backend.identifiers import is_valid
from tests.sftp_speaker import (
    DIRECTORY,
    FILE,
    FolderSpeaker,
    Hostile,
    attributes,
    names,
    number,
    packet,
    status,
)
from tests.ssh_servers import make_key

SILENCE = 0.5  # seconds that our side waits for an answer
LONGEST = 30.0  # seconds of one operation: four connections, dialled and given up, on a busy machine
MEMORY = 256 << 20  # bytes that the process may grow by
NAMES = ("a", "b", "d/a", "d/e/f", "empty")
SIZES = (0, 1, 1000, 40_000, 300_000)

Told = Callable[["Liar", int, int, bytes], bytes | None]


@dataclass
class Lies:
    """What the servers of one run tell.

    Attributes:
        rate: of so many answers one is a lie.
        sizes: that were told of files during the operation.
        unsized: how often none was told.
        told: how often each was.
        sessions: that are not at their ends.
        quiet: whether silence is among them.
        extensions: that the servers announce.
    """

    random: random.Random
    rate: int
    quiet: bool
    extensions: tuple[bytes, ...]
    sizes: set[int] = field(default_factory=set)
    unsized: int = 0
    told: Counter[str] = field(default_factory=Counter)
    sessions: set[Any] = field(default_factory=set)
    at_work: bool = True


class Liar(FolderSpeaker):
    """Tells the truth of a directory, but for the lies."""

    def __init__(self, channel: Any, name: str, server: Any, lies: Lies, root: Path) -> None:
        super().__init__(channel, name, server, {}, root)
        self.lies = lies
        self.extensions = lies.extensions
        self._held: list[bytes] = []

    @override
    def start_subsystem(self, name: str, transport: Any, channel: Any) -> None:
        self.lies.sessions.add(self)
        try:
            super().start_subsystem(name, transport, channel)
        finally:
            self.lies.sessions.discard(self)

    @override
    def reply(self, kind: int, request: int, body: bytes) -> bytes | None:
        lies = self.lies
        if not lies.at_work or lies.random.randrange(lies.rate):
            said: bytes | None = self.honest(kind, request, body)
        else:
            known = [*OF_ALL, *(OF_KINDS.get(kind, ()))]
            if lies.quiet:
                known.append(silence)
            chosen = lies.random.choice(known)
            lies.told[chosen.__name__] += 1
            said = chosen(self, kind, request, body)
        held, self._held = self._held, []
        return None if said is None and not held else b"".join([said or b"", *held])

    @override
    def honest(self, kind: int, request: int, body: bytes) -> bytes:
        if kind == 200 and Fields(body).string() == LIMITS:
            return packet(
                EXTENDED_REPLY,
                request,
                struct.pack(">QQQQ", *(self.lies.random.choice(LIMIT) for _ in "1234")),
            )
        return super().honest(kind, request, body)

    def done_or_not(self, kind: int, request: int, body: bytes) -> None:
        """A failure that is told may be one or not."""
        if self.lies.random.random() < 0.5:
            self.honest(kind, request, body)

    def end(self) -> None:
        """Break the connection."""
        self.channel.get_transport().close()
        raise EOFError


LIMIT = (0, 1, 1000, 32768, 261120, 1 << 40, (1 << 64) - 1)


def failure(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    liar.done_or_not(kind, request, body)
    code = liar.lies.random.choice(
        [EOF, NO_SUCH_FILE, PERMISSION_DENIED, FAILURE, 5, 6, 7, UNSUPPORTED, 12345]
    )
    return status(
        request, code, liar.lies.random.choice([b"", b"No space left on device", b"\xff\xfe", b"x" * 3000])
    )


def other_kind(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    liar.done_or_not(kind, request, body)
    kinds = [
        each
        for each in (HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY, VERSION, 250)
        if each not in ANSWERS.get(kind, ())
    ]
    return packet(
        liar.lies.random.choice(kinds),
        request,
        liar.lies.random.choice([b"", number(0), text(b"x"), number(1 << 31)]),
    )


def other_number(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    liar.done_or_not(kind, request, body)
    return status(request + 1_000_000, FAILURE)


def twice(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    said = liar.honest(kind, request, body)
    return said + said


def cut(liar: Liar, kind: int, request: int, body: bytes) -> bytes | None:
    said = liar.honest(kind, request, body)
    liar.channel.sendall(said[: liar.lies.random.randrange(len(said))])
    liar.end()
    return None


def broken(liar: Liar, kind: int, request: int, body: bytes) -> bytes | None:
    liar.done_or_not(kind, request, body)
    liar.end()
    return None


def garbage(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    liar.done_or_not(kind, request, body)
    return liar.lies.random.choice(
        [b"\xff" * 100, number(0), number(1 << 31), number(5) + b"Welcome!\n", number(1 << 20 | 1)]
    )


def late(liar: Liar, kind: int, request: int, body: bytes) -> bytes | None:
    """After the next answer, where there will be one."""
    said = liar.honest(kind, request, body)
    if not liar.channel.recv_ready():
        return said
    following = liar._exactly(int.from_bytes(liar._exactly(4)))
    return liar.honest(following[0], int.from_bytes(following[1:5]), following[5:]) + said


def slow(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    said = liar.honest(kind, request, body)
    for piece in (said[:3], said[3:]):
        liar.channel.sendall(piece)
        time.sleep(0.002)
    return b""


def silence(liar: Liar, kind: int, request: int, body: bytes) -> None:
    liar.done_or_not(kind, request, body)


def another_size(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    said = liar.honest(kind, request, body)
    if said[4] != ATTRS:
        return said
    size, mode, modified = struct.unpack(">QIxxxxI", said[13:33])
    if not stat.S_ISREG(mode):
        return said
    other = liar.lies.random.choice(
        [0, size // 2, size + 1, max(size - 1, 0), 2 * size, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
    )
    liar.lies.sizes.add(other)
    return packet(ATTRS, request, attributes(other, mode, modified))


def another_nature(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    said = liar.honest(kind, request, body)
    if said[4] != ATTRS:
        return said
    mode = liar.lies.random.choice(
        [stat.S_IFIFO, stat.S_IFLNK, stat.S_IFSOCK, stat.S_IFCHR, DIRECTORY, 0o644, 0xFFFFFFFF]
    )
    return packet(ATTRS, request, said[9:21] + number(mode) + said[25:])


def few_attributes(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    said = liar.honest(kind, request, body)
    if said[4] != ATTRS:
        return said
    liar.lies.unsized += 1
    return packet(
        ATTRS,
        request,
        liar.lies.random.choice([number(0), number(4) + number(FILE), number(8) + number(7) * 2]),
    )


def short(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    """Less than was asked for, which a server may give."""
    said = liar.honest(kind, request, body)
    if said[4] != DATA:
        return said
    data = said[13:]
    return packet(DATA, request, text(data[: liar.lies.random.randrange(1, len(data) + 1)]))


def end_of_file(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    return status(request, EOF)


def no_data(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    return packet(DATA, request, liar.lies.random.choice([b"", text(b""), number(9) + b"x"]))


def more_data(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    return packet(DATA, request, text(bytes(int.from_bytes(body[-4:]) + liar.lies.random.choice([1, 5000]))))


def odd_names(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    said = liar.honest(kind, request, body)
    if said[4] != NAME:
        return said
    odd = liar.lies.random.choice(
        [b"", b"/", b"../x", b"x/y", b"..", b"a\0b", b"n" * 256, b".~sb-x", b"ghost"]
    )
    mode = liar.lies.random.choice([FILE, stat.S_IFLNK | 0o777])
    count = liar.lies.random.choice([1, 1, 1, 2, 0, (1 << 32) - 1])
    return names(request, (odd, attributes(1, mode)), count=count)


def long_handle(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    liar.done_or_not(kind, request, body)
    return packet(
        HANDLE, request, liar.lies.random.choice([text(b"h" * 257), number(9) + b"x", text(b"no such")])
    )


def odd_home(liar: Liar, kind: int, request: int, body: bytes) -> bytes:
    return names(request, (b"/", attributes()), (b"/x", attributes()))


OF_ALL: tuple[Told, ...] = (failure, other_kind, other_number, twice, cut, broken, garbage, late, slow)
LOOKS: tuple[Told, ...] = (another_size, another_nature, few_attributes) * 2
OF_KINDS: Mapping[int, tuple[Told, ...]] = {
    STAT: LOOKS,
    LSTAT: LOOKS,
    FSTAT: LOOKS,
    READ: (short, end_of_file, no_data, more_data) * 3,
    READDIR: (odd_names,) * 5,
    OPEN: (long_handle,),
    REALPATH: (odd_home,),
}
ANSWERS: Mapping[int, tuple[int, ...]] = {
    **dict.fromkeys((STAT, LSTAT, FSTAT), (ATTRS,)),
    READ: (DATA,),
    READDIR: (NAME,),
    REALPATH: (NAME,),
    OPEN: (HANDLE,),
    11: (HANDLE,),
    200: (EXTENDED_REPLY,),
}
SERVERS = {
    "OpenSSH": ("OpenSSH_9.9", (POSIX_RENAME, LIMITS)),
    "another": ("other", (POSIX_RENAME,)),
    "bare": ("bare", ()),
    "empty promises": ("OpenSSH_9.9", (HARDLINK, LIMITS)),
}


class Disk:
    """What the server's disk has."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def objects(self) -> dict[str, bytes]:
        return {
            name: path.read_bytes()
            for path in self._root.rglob("*")
            if path.is_file() and is_valid(name := str(path.relative_to(self._root)))
        }

    def everything(self) -> set[bytes]:
        return {path.read_bytes() for path in self._root.rglob("*") if path.is_file()}


class Run:
    """Operations chosen at random, each checked against the disk."""

    def __init__(self, backend: RemoteStorage, root: Path, lies: Lies, scratch: Path) -> None:
        self.backend = backend
        self.disk = Disk(root)
        self.lies = lies
        self.random = random.Random(lies.random.random())
        self.scratch = scratch
        self.outcomes: Counter[str] = Counter()
        self.contents: list[bytes] = []

    def content(self) -> bytes:
        return self.random.randbytes(self.random.choice(SIZES))

    def right(self, found: bytes, truth: bytes | None) -> None:
        """All of it; or as much as the server said that there was."""
        assert truth is not None, "what is not there was read"
        trusted = len(found) in self.lies.sizes or self.lies.unsized > 1
        assert found == truth or (trusted and found == truth[: len(found)]), (
            f"{len(found):,} bytes that are not the object's {len(truth):,}"
        )

    def reading(self) -> None:
        name = self.random.choice(NAMES)
        truth = self.disk.objects().get(name)
        backend, path = self.backend, self.scratch / "download"
        way = self.random.randrange(6)
        if way == 0:
            self.right(backend.read(name), truth)
        elif way == 1:
            with backend.open(name) as reader:
                self.right(reader.read(), truth)
        elif way == 2:
            start = self.random.randrange(50_000)
            end = start + self.random.randrange(50_000)
            found = backend.read_range(name, start, end)
            assert truth is not None
            limits = {len(truth), *self.lies.sizes}
            assert any(found == truth[start : min(end, limit)] for limit in limits)
        elif way == 3:
            path.unlink(missing_ok=True)
            try:
                backend.download(name, path)
            finally:
                if path.exists():
                    self.right(path.read_bytes(), truth)
        elif way == 4:
            digest = backend.checksum(name)
            assert truth is not None
            limits = {len(truth), *(size for size in self.lies.sizes if size < len(truth))}
            assert digest in {sha256(truth[:limit]).hexdigest() for limit in limits}
        else:
            objects = self.disk.objects()
            for each, content in backend.read_many(NAMES):
                self.right(content, objects.get(each))

    def writing(self) -> None:
        name, new = self.random.choice(NAMES), self.content()
        self.contents.append(new)
        old = self.disk.objects().get(name)
        way = self.random.randrange(4)
        done = False
        try:
            if way == 0:
                done = self.backend.write(name, new)
            elif way == 1:
                (self.scratch / "upload").write_bytes(new)
                done = self.backend.upload(self.scratch / "upload", name)
            elif way == 2:
                with self.backend.open(name, "wb") as writer:
                    writer.write(new)
                done = True
            else:
                done = self.backend.write_many([(name, new), ("other", new)], verify=True) == 2
        finally:
            found = self.settled().get(name)
            whose = [index for index, content in enumerate(self.contents) if content == found]
            assert found == new if done else found in {old, new}, (
                f"{name} after a write ({way}, done: {done}) of {len(new):,} bytes has {len(found or b''):,}, of write {whose} of {len(self.contents)}; old: {[i for i, c in enumerate(self.contents) if c == old]}"
            )

    def moving(self) -> None:
        source, dest = self.random.choice(NAMES), self.random.choice(NAMES)
        before = self.disk.objects()
        verb = self.random.choice([self.backend.move, self.backend.copy])
        done = False
        try:
            done = verb(source, dest)
        finally:
            after = self.settled()
            content = before.get(source)
            if done and content is not None:
                found = after.get(dest)
                assert found is not None
                self.right(found, content)
                assert verb == self.backend.copy or source == dest or source not in after
            elif content is not None:
                assert content in {after.get(source), after.get(dest)}, "an object is lost"

    def deleting(self) -> None:
        name = self.random.choice(NAMES)
        before = self.disk.objects()
        done = False
        try:
            one = self.random.random() < 0.5
            done = self.backend.delete(name) if one else self.backend.delete_many([name]) == 1
        finally:
            after = self.settled()
            assert after.get(name) in {None, before.get(name)}
            assert {key: after.get(key) for key in before if key != name} == {
                key: value for key, value in before.items() if key != name
            }
        assert done

    def listing(self) -> None:
        objects = self.disk.objects()
        found = (
            self.backend.list()
            if self.random.random() < 0.5
            else [info.identifier for info in self.backend.scan(on_skip=bool)]
        )
        assert set(found) <= {*objects, "ghost"} | {f"{each}/ghost" for each in ("d", "d/e")}
        assert found == sorted(set(found))

    def settled(self) -> dict[str, bytes]:
        """What there is once the server has done what it was asked, and what was moved aside is back."""
        self.lies.at_work = False
        try:
            self.quiet()
            self.backend.cleanup()
        finally:
            self.lies.at_work = True
        return self.disk.objects()

    def quiet(self) -> None:
        """Wait until servers whose connections were lost have done what had arrived."""
        deadline = time.monotonic() + LONGEST
        while len(self.lies.sessions) > 1 and time.monotonic() < deadline:
            time.sleep(0.001)

    def step(self) -> None:
        self.quiet()
        self.lies.sizes.clear()
        self.lies.unsized = 0
        verb = self.random.choice(
            [self.reading] * 5 + [self.writing] * 3 + [self.moving, self.deleting, self.listing]
        )
        began = time.monotonic()
        try:
            verb()
            self.outcomes["done"] += 1
        except StorageError as error:
            self.outcomes[type(error).__name__] += 1
        assert time.monotonic() - began < LONGEST


@pytest.mark.parametrize("server", SERVERS)
def test_lies_bring_errors_and_never_a_wrong_byte(
    server: str, tmp_path: Path, soak: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    seed = random.SystemRandom().randrange(1 << 32) if soak else 13
    name, extensions = SERVERS[server]
    lies = Lies(random.Random(seed), 25 if soak else 15, soak, extensions)
    root = tmp_path / "root"
    root.mkdir()
    hostile = Hostile(make_key(tmp_path, name="host"), Liar, lies, root, name=name)
    config: Any = {
        "user": "u",
        "endpoints": [["127.0.0.1", hostile.port]],
        "password": "p",
        "agent": False,
        "known_hosts": [],
        "connection_timeout": 20.0,
        "io_timeout": SILENCE if soak else 20.0,
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with RemoteStorage(config, "/", auto_connect=False) as backend:
            run = Run(backend, root, lies, tmp_path)
            for _ in range(1250 if soak else 40):
                run.step()
    except BaseException as error:
        error.add_note(f"seed {seed}; told: {dict(lies.told)}")
        raise
    finally:
        hostile.close()
    print(f"{server}: {dict(run.outcomes)}; lies: {dict(lies.told)}")
    assert lies.told.total() > 5
    assert run.outcomes["done"] > 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY
