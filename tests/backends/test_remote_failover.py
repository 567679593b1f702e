"""RemoteStorage when its connection fails: the other endpoint is used, and no operation does half of what it says."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import pytest

from tests.tiers import few

pytest.importorskip("paramiko")

from storage_backend import (
    NoEndpointError,
    NotFoundError,
    RemoteStorage,
    SourceChangedError,
    StorageError,
    UnavailableError,
)
from storage_backend.backends.remote.failover import FIRST_FAILBACK_DELAY, MAX_FAILBACK_DELAY, Failover
from storage_backend.backends.remote.remote_path import RemotePath
from storage_backend.backends.remote.settings import read_settings
from storage_backend.backends.remote.sftp_contents import stat_object
from storage_backend.testing.subject import same
from tests.ssh_pairs import Pair, pair
from tests.ssh_proxy import BlackHole, Direction
from tests.ssh_servers import make_key

if TYPE_CHECKING:
    from tests.ssh_servers import OpenSSH, SSHPlace

MIB = 1 << 20


@pytest.fixture
def ways(openssh_place: SSHPlace) -> Iterator[Pair]:
    with pair(openssh_place) as both:
        yield both


def content_of(size: int, seed: str = "") -> bytes:
    """Bytes of which no two pieces are equal, so that a mix shows."""
    return hashlib.shake_256(f"{seed}{size}".encode()).digest(size)


class Breaking(io.BytesIO):
    """A source that has something happen once a given part of it has been read."""

    def __init__(
        self, content: bytes, after: int, happen: Callable[[], object], seekable: bool = True
    ) -> None:
        super().__init__(content)
        self._after = after
        self._happen: Callable[[], object] | None = happen
        self._seekable = seekable

    def seekable(self) -> bool:
        return self._seekable

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if self._happen is not None and super().tell() >= self._after:
            happen, self._happen = self._happen, None
            happen()
        return piece

    def readinto(self, buffer: Any, /) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class TestFirstDoesNotWork:
    def test_refusing_first_is_passed_over(self, ways: Pair) -> None:
        ways.first.refuse()
        with ways.storage() as storage:
            storage.write("a", b"1")
            assert storage.read("a") == b"1"
            assert ways.port_in_use(storage) == "second"

    def test_black_holed_first_is_passed_over(self, ways: Pair) -> None:
        with BlackHole() as hole:
            endpoints = [[hole.host, hole.port], ways.endpoints[1]]
            with ways.storage(endpoints=endpoints) as storage:
                storage.write("a", b"1")
                assert ways.port_in_use(storage) == "second"

    def test_first_without_a_banner_is_passed_over(self, ways: Pair) -> None:
        ways.first.silent()
        with ways.storage() as storage:
            storage.write("a", b"1")
            assert ways.port_in_use(storage) == "second"

    def test_first_that_rejects_the_key_is_passed_over(self, ways: Pair, tmp_path: Path) -> None:
        from tests.ssh_servers import OpenSSH

        stranger = OpenSSH(data=ways.place.local)
        try:
            ways_known = Path(ways.place.known_hosts)
            known = tmp_path / "known_hosts"
            known.write_text(ways_known.read_text() + Path(stranger.known_hosts).read_text())
            endpoints = [[stranger.host, stranger.port], ways.endpoints[1]]
            with ways.storage(endpoints=endpoints, known_hosts=str(known)) as storage:
                storage.write("a", b"1")
                assert ways.port_in_use(storage) == "second"
        finally:
            stranger.stop()

    def test_all_that_reject_the_key_are_told_with_reasons(self, ways: Pair, tmp_path: Path) -> None:
        with pytest.raises(NoEndpointError) as caught:
            ways.storage(key_filename=str(make_key(tmp_path)))
        for _, port in ways.endpoints:
            assert str(port) in str(caught.value)


class TestFirstIsLost:
    @pytest.mark.soak
    def test_large_read(self, ways: Pair, soak: bool) -> None:
        size = (1 << 30) if soak else 200 * MIB
        block = content_of(MIB)
        digest = hashlib.sha256()
        with (ways.place.local / "big").open("wb") as file:
            for number in range(size // MIB):
                piece = number.to_bytes(8) + block[8:]
                digest.update(piece)
                file.write(piece)
        with ways.storage() as storage:
            ways.lose_first_after(size // 2, "from_server")
            found = hashlib.sha256()
            with storage.open("big") as stream:
                while piece := stream.read(MIB):
                    found.update(piece)
            assert found.hexdigest() == digest.hexdigest()
            assert ways.port_in_use(storage) == "second"

    @pytest.mark.parametrize("verb", few(["download", "read", "read_range", "stream"], 1))
    def test_reading(self, ways: Pair, verb: str, tmp_path: Path) -> None:
        content = content_of(24 * MIB)
        (ways.place.local / "big").write_bytes(content)
        with ways.storage() as storage:
            ways.lose_first_after(10 * MIB, "from_server")
            if verb == "read":
                found = storage.read("big")
            elif verb == "read_range":
                found = storage.read_range("big", 5, None)
                content = content[5:]
            elif verb == "download":
                assert storage.download("big", tmp_path / "big")
                found = (tmp_path / "big").read_bytes()
                assert [each.name for each in tmp_path.iterdir()] == ["big"]
            else:
                with storage.open("big") as stream:
                    found = b"".join(iter(lambda: stream.read(70_001), b""))
            assert same(found, content)
            assert ways.port_in_use(storage) == "second"

    @pytest.mark.parametrize("verify", few([True, False], 1))
    def test_write_stream_from_a_seekable_source(self, ways: Pair, verify: bool) -> None:
        content = content_of(24 * MIB)
        with ways.storage() as storage:
            storage.write("a/big", b"old")
            source = Breaking(b"skipped" + content, 12 * MIB, ways.lose_first)
            source.seek(7)
            assert storage.write_stream("a/big", source, verify=verify)
            assert same(storage.read("a/big"), content)
            assert ways.port_in_use(storage) == "second"
            storage.cleanup(0)
            assert ways.temporary() == []

    @pytest.mark.soak
    @pytest.mark.parametrize("verify", few([True, False], 1))
    def test_write_stream_from_a_source_that_cannot_be_rewound(self, ways: Pair, verify: bool) -> None:
        content = content_of(24 * MIB)
        with ways.storage() as storage:
            storage.write("a/big", b"old")
            source = Breaking(content, 12 * MIB, ways.lose_first, seekable=False)
            with pytest.raises(UnavailableError):
                storage.write_stream("a/big", source, verify=verify)
            assert storage.read("a/big") == b"old"
            assert storage.list() == ["a/big"]
            storage.cleanup(0)
            assert ways.temporary() == []

    def test_small_write_stream_from_a_source_that_cannot_be_rewound(self, ways: Pair) -> None:
        content = content_of(200_000)
        with ways.storage() as storage:
            source = Breaking(content, len(content), ways.lose_first, seekable=False)
            assert storage.write_stream("a", source)
            assert same(storage.read("a"), content)

    @pytest.mark.soak
    def test_open_for_writing(self, ways: Pair) -> None:
        with ways.storage() as storage:
            storage.write("a/big", b"old")
            stream = storage.open("a/big", "wb")
            stream.write(content_of(4 * MIB))
            ways.lose_first()
            with pytest.raises(UnavailableError):
                _write_all(stream, content_of(40 * MIB))
            assert storage.read("a/big") == b"old"
            assert storage.list() == ["a/big"]
            storage.cleanup(0)
            assert ways.temporary() == []

    def test_open_for_writing_lost_at_its_end(self, ways: Pair) -> None:
        with ways.storage() as storage:
            storage.write("a/big", b"old")
            stream = storage.open("a/big", "wb")
            stream.write(content_of(MIB))
            ways.lose_first()
            with pytest.raises(UnavailableError):
                stream.close()
            assert storage.read("a/big") == b"old"

    def test_upload(self, ways: Pair, tmp_path: Path) -> None:
        content = content_of(24 * MIB)
        (tmp_path / "big").write_bytes(content)
        with ways.storage() as storage:
            ways.lose_first_after(12 * MIB, "from_client")
            assert storage.upload(tmp_path / "big", "a/big")
            assert same(storage.read("a/big"), content)
            assert ways.port_in_use(storage) == "second"
            assert ways.temporary() == []

    @pytest.mark.parametrize("when", few([300, 1, 1500, 2999], 1))
    def test_read_many(self, ways: Pair, when: int) -> None:
        expected = {f"d{number % 7}/{number}": content_of(500, str(number)) for number in range(3000)}
        with ways.storage() as storage:
            assert storage.write_many(expected.items()) == 3000
            found = {}
            for number, (identifier, content) in enumerate(storage.read_many(expected), 1):
                assert identifier not in found
                found[identifier] = content
                if number == when:
                    ways.lose_first()
            assert same(found, expected)

    @pytest.mark.soak
    def test_read_many_with_large_objects(self, ways: Pair) -> None:
        expected = {f"{number}": content_of(3 * MIB, str(number)) for number in range(5)}
        with ways.storage() as storage:
            storage.write_many(expected.items())
            ways.lose_first_after(8 * MIB, "from_server")
            assert same(dict(storage.read_many(expected)), expected)
            assert ways.port_in_use(storage) == "second"

    @pytest.mark.parametrize("verify", few([True, False], 1))
    @pytest.mark.parametrize("count", few([200_000, 2_000, 900_000], 1))
    def test_write_many(self, ways: Pair, verify: bool, count: int) -> None:
        expected = {f"d{number % 7}/{number}": content_of(500, str(number)) for number in range(2000)}
        with ways.storage() as storage:
            ways.lose_first_after(count, "from_client")
            assert storage.write_many(expected.items(), verify=verify) == 2000
            assert ways.port_in_use(storage) == "second"
            assert same(dict(storage.read_many(storage.list())), expected)
            storage.cleanup(0)
            assert ways.temporary() == []

    @pytest.mark.soak
    def test_write_many_lost_between_items(self, ways: Pair) -> None:
        expected = {f"d{number % 7}/{number}": content_of(500, str(number)) for number in range(3000)}

        def items() -> Iterator[tuple[str, bytes]]:
            for number, item in enumerate(expected.items()):
                if number == 1500:
                    ways.lose_first()
                yield item

        with ways.storage() as storage:
            assert storage.write_many(items()) == 3000
            assert same(dict(storage.read_many(storage.list())), expected)

    @pytest.mark.soak
    @pytest.mark.parametrize("count", few([2_000, 60_000], 1))
    def test_delete_many(self, ways: Pair, count: int) -> None:
        names = [f"d{number % 7}/{number}" for number in range(2000)]
        with ways.direct() as storage:
            storage.write_many((name, b"") for name in [*names, "kept"])
        with ways.storage() as storage:
            ways.lose_first_after(count, "from_client")
            assert storage.delete_many([*names, "missing"]) == 2001
            assert ways.port_in_use(storage) == "second"
            assert storage.list() == ["kept"]

    @pytest.mark.soak
    @pytest.mark.parametrize("shell", few(["auto", "never"], 1))
    @pytest.mark.parametrize("when", few([2500, 1, 4999], 1))
    def test_scan(self, ways: Pair, shell: str, when: int) -> None:
        names = sorted(f"d{number % 60}/{number}" for number in range(5000))
        with ways.direct() as storage:
            storage.write_many((name, b"x" * (number % 5)) for number, name in enumerate(names))
            expected = list(storage.scan())
        with ways.storage(shell=shell) as storage:
            found = []
            for info in storage.scan():
                found.append(info)
                if len(found) == when:
                    ways.lose_first()
            assert found == expected
            assert [info.identifier for info in found] == names

    @pytest.mark.parametrize("shell", few(["auto", "never"], 1))
    def test_list(self, ways: Pair, shell: str) -> None:
        names = sorted(f"d{number % 60}/{number}" for number in range(5000))
        with ways.storage(shell=shell) as storage:
            storage.write_many((name, b"") for name in names)
            ways.lose_first_after(30_000, "from_server")
            assert storage.list() == names
            assert ways.port_in_use(storage) == "second"

    @pytest.mark.parametrize("shell", few(["auto", "never"], 1))
    def test_idle_connection(self, ways: Pair, shell: str) -> None:
        with ways.storage(shell=shell) as storage:
            storage.write("a", b"1")
            ways.lose_first()
            assert storage.read("a") == b"1"
            assert ways.port_in_use(storage) == "second"

    def test_all_threads_go_on(self, ways: Pair) -> None:
        failures: list[BaseException] = []
        begun = threading.Barrier(9)

        def work(number: int) -> None:
            try:
                begun.wait()
                for step in range(60):
                    content = content_of(2000, f"{number} {step}")
                    storage.write(f"{number}/{step}", content)
                    assert same(storage.read(f"{number}/{step}"), content)
            except BaseException as error:  # noqa: BLE001 - shown by the test
                failures.append(error)

        with ways.storage() as storage:
            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            ways.lose_first_after(300_000, "from_client")
            begun.wait()
            for thread in threads:
                thread.join()
            assert failures == []
            assert ways.port_in_use(storage) == "second"
            assert len(storage.list()) == 480

    @pytest.mark.soak
    def test_killed_server_is_left_for_the_other(
        self, openssh_server: OpenSSH, openssh_place: SSHPlace
    ) -> None:
        from tests.ssh_servers import OpenSSH

        content = content_of(24 * MIB)
        (openssh_place.local / "big").write_bytes(content)
        first = OpenSSH(data=openssh_server.local, authorized=[openssh_place.key_filename])
        try:
            known = [first.known_hosts, openssh_place.known_hosts]
            endpoints = [[first.host, first.port], [openssh_place.host, openssh_place.port]]
            config: Any = openssh_place.config(endpoints=endpoints, known_hosts=known)
            with RemoteStorage(config, openssh_place.base) as storage:
                assert storage.port == first.port
                with storage.open("big") as stream:
                    head = stream.read(5 * MIB)
                    first.kill()
                    assert same(head + stream.read(), content)
                assert storage.port == openssh_place.port
                first.start()
                storage.check_connection()
                assert storage.port == first.port
                assert same(storage.read("big"), content)
        finally:
            first.stop()


class TestSilence:
    """A connection on which nothing comes any more is given up after io_timeout."""

    @pytest.mark.soak
    def test_read_goes_on_elsewhere(self, ways: Pair) -> None:
        content = content_of(24 * MIB)
        (ways.place.local / "big").write_bytes(content)
        with ways.storage(io_timeout=2.0) as storage, storage.open("big") as stream:
            head = stream.read(3 * MIB)
            ways.first.black_hole()
            assert same(head + stream.read(), content)
            assert ways.port_in_use(storage) == "second"

    @pytest.mark.soak
    @pytest.mark.parametrize(
        "verb",
        [
            "write_stream",
            *(
                pytest.param(v, marks=pytest.mark.soak)
                for v in ("list", "exists", "write", "write_many", "checksum", "copy")
            ),
        ],
    )
    def test_operation_goes_on_elsewhere(self, ways: Pair, verb: str) -> None:
        content = content_of(8 * MIB)
        verbs: dict[str, Callable[[RemoteStorage], object]] = {
            "write": lambda storage: storage.write("a", b"new"),
            "write_stream": lambda storage: storage.write_stream("a", io.BytesIO(content)),
            "list": lambda storage: storage.list() == ["a"],
            "exists": lambda storage: storage.exists("a"),
            "write_many": lambda storage: storage.write_many([("b", b"1"), ("c", b"2")]) == 2,
            "checksum": lambda storage: storage.checksum("a") == hashlib.sha256(b"old").hexdigest(),
            "copy": lambda storage: storage.copy("a", "b"),
        }
        with ways.storage(io_timeout=2.0) as storage:
            storage.write("a", b"old")
            ways.first.black_hole()
            assert verbs[verb](storage)
            assert ways.port_in_use(storage) == "second"

    @pytest.mark.soak
    def test_server_that_takes_nothing_more_is_left(
        self, openssh_server: OpenSSH, openssh_place: SSHPlace
    ) -> None:
        """The client's own send waits then, for buffers to empty."""
        content = content_of(48 * MIB)
        with pair(openssh_place) as ways, ways.storage(io_timeout=2.0) as storage:
            frozen = ways.first._process
            source = Breaking(content, 8 * MIB, lambda: frozen.send_signal(signal.SIGSTOP))
            try:
                assert storage.write_stream("a", source)
                assert ways.port_in_use(storage) == "second"
            finally:
                frozen.send_signal(signal.SIGCONT)
            assert same(storage.read("a"), content)


def verbs_of(directory: Path) -> dict[str, Callable[[RemoteStorage], object]]:
    """Each verb, on an object "a" that is there."""
    (directory / "file").write_bytes(b"1")
    (directory / "large").write_bytes(bytes(9 * MIB))
    return {
        "exists": lambda storage: storage.exists("a"),
        "exists of a missing one": lambda storage: storage.exists("missing"),
        "read": lambda storage: storage.read("a"),
        "read_range": lambda storage: storage.read_range("a", 0, 1),
        "read_many": lambda storage: list(storage.read_many(["a"])),
        "open": lambda storage: storage.open("a").read(),
        "open to write": lambda storage: _write_all(storage.open("b", "wb"), b"1"),
        "open to write much": lambda storage: _write_all(storage.open("b", "wb"), bytes(MIB)),
        "write": lambda storage: storage.write("b", b"1"),
        "write much": lambda storage: storage.write("b", bytes(MIB)),
        "write_stream": lambda storage: storage.write_stream("b", io.BytesIO(b"1")),
        "write_stream, verified": lambda storage: storage.write_stream(
            "b", io.BytesIO(bytes(MIB)), verify=True
        ),
        "write_many": lambda storage: storage.write_many([("b", b"1")]),
        "write_many, verified": lambda storage: storage.write_many([("b", b"1")], verify=True),
        "list": lambda storage: storage.list(),
        "list by pattern": lambda storage: storage.list("*"),
        "scan": lambda storage: list(storage.scan()),
        "size": lambda storage: storage.size("a"),
        "stat": lambda storage: storage.stat("a"),
        "delete": lambda storage: storage.delete("a"),
        "delete a missing one": lambda storage: storage.delete("missing"),
        "delete_many": lambda storage: storage.delete_many(["a"]),
        "copy": lambda storage: storage.copy("a", "b"),
        "move": lambda storage: storage.move("a", "b"),
        "move to itself": lambda storage: storage.move("a", "a"),
        "create": lambda storage: storage.create("b", b"1"),
        "create what is there": lambda storage: storage.create("a", b"1"),
        "checksum": lambda storage: storage.checksum("a"),
        "download": lambda storage: storage.download("a", directory / "new"),
        "upload": lambda storage: storage.upload(directory / "file", "b"),
        "upload of a large one": lambda storage: storage.upload(directory / "large", "b"),
        "flush": lambda storage: storage.flush(),
        "cleanup": lambda storage: storage.cleanup(0),
        "capabilities": lambda storage: storage.capabilities,
        "check_connection": lambda storage: storage.check_connection(),
    }


def _write_all(stream: BinaryIO, content: bytes) -> None:
    with stream:
        stream.write(content)


def _read_on(stream: BinaryIO, pieces: list[bytes]) -> None:
    """Read to the end, and keep all that comes before an error."""
    while piece := cast(io.BufferedReader, stream).read1(MIB):
        pieces.append(piece)


class TestNothingWorks:
    @pytest.mark.soak
    def test_every_verb_says_so(self, ways: Pair, tmp_path: Path) -> None:
        """Never False, never that there is none: one storage lost both while connected, the other before."""
        verbs = verbs_of(tmp_path)
        with ways.direct() as direct:
            direct.write("a", b"1")
        wrong = {}
        lost = {name: ways.storage() for name in verbs}
        ways.lose_both()
        for name, verb in verbs.items():
            cold = RemoteStorage(ways.config(), ways.place.base, auto_connect=False)
            for state, storage in (("connected", lost[name]), ("cold", cold)):
                try:
                    wrong[name, state] = f"returned {verb(storage)!r}"
                except NoEndpointError as error:
                    text = str(error)
                    for _, port in ways.endpoints:
                        if f"{ways.first.host}:{port}: " not in text:
                            wrong[name, state] = text
                except Exception as error:  # noqa: BLE001 - shown by the test
                    wrong[name, state] = repr(error)
                finally:
                    storage.close()
        assert wrong == {}
        assert [each.name for each in ways.place.local.iterdir() if not each.name.startswith(".")] == ["a"]
        assert (ways.place.local / "a").read_bytes() == b"1"
        assert not (tmp_path / "new").exists()

    def test_read_that_is_half_done_says_so_and_goes_on_once_there_is_an_endpoint(self, ways: Pair) -> None:
        content = content_of(24 * MIB)
        (ways.place.local / "big").write_bytes(content)
        with ways.storage() as storage, storage.open("big") as stream:
            head = stream.read(MIB)
            ways.lose_both()
            pieces = [head]
            with pytest.raises(NoEndpointError):
                _read_on(stream, pieces)
            ways.second.heal()
            pieces.append(stream.read())
            assert same(b"".join(pieces), content)


class TestFirstComesBack:
    def test_check_connection_uses_it_again(self, ways: Pair) -> None:
        ways.first.refuse()
        with ways.storage() as storage:
            assert ways.port_in_use(storage) == "second"
            storage.check_connection()
            assert ways.port_in_use(storage) == "second"
            ways.first.heal()
            assert str(ways.first.port) in storage.check_connection()
            assert ways.port_in_use(storage) == "first"
            storage.write("a", b"1")
            assert storage.read("a") == b"1"

    def test_it_is_used_again_after_a_while(self, ways: Pair, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.CRITICAL)
        now = [0.0]
        failover = Failover(read_settings(ways.config()), ways.place.base, "there", clock=lambda: now[0])
        (ways.place.local / "a").write_bytes(b"1")

        def port_after_a_read() -> int:
            failover.perform(stat_object, RemotePath("a", b"a"))
            for thread in threading.enumerate():
                if thread.name == "storage-backend-failback":
                    thread.join()
            endpoint = failover.endpoint
            assert endpoint is not None
            return endpoint.port

        try:
            ways.first.refuse()
            assert port_after_a_read() == ways.second.port
            pause = FIRST_FAILBACK_DELAY
            for _ in range(8):
                now[0] += pause
                assert port_after_a_read() == ways.second.port
                pause = min(2 * pause, MAX_FAILBACK_DELAY)
            ways.first.heal()
            now[0] += pause - 0.5
            assert port_after_a_read() == ways.second.port
            now[0] += 1.0
            assert port_after_a_read() == ways.first.port
            # Lost again, it is looked for as soon as the first time.
            ways.lose_first()
            assert port_after_a_read() == ways.second.port
            ways.first.heal()
            now[0] += FIRST_FAILBACK_DELAY
            assert port_after_a_read() == ways.first.port
        finally:
            failover.close()

    def test_what_is_under_way_ends_on_the_old_connection(self, ways: Pair) -> None:
        content = content_of(24 * MIB)
        (ways.place.local / "big").write_bytes(content)
        ways.first.refuse()
        with ways.storage() as storage, storage.open("big") as stream:
            head = stream.read(MIB)
            ways.first.heal()
            storage.check_connection()
            assert ways.port_in_use(storage) == "first"
            before = ways.first.counts().from_server
            assert same(head + stream.read(), content)
            assert ways.first.counts().from_server - before < MIB
            assert ways.second.counts().from_server > len(content)


class TestReplacedWhileItIsRead:
    @pytest.mark.soak
    def test_the_old_bytes_are_read_to_the_end(self, ways: Pair) -> None:
        old, new = content_of(24 * MIB, "old"), content_of(24 * MIB, "new")
        with ways.storage() as storage, ways.direct() as other:
            storage.write("a", old)
            with storage.open("a") as stream:
                head = stream.read(MIB)
                other.write("a", new)
                assert same(head + stream.read(), old)

    @pytest.mark.parametrize("size", few([24 * MIB + 1, 24 * MIB], 1))
    def test_after_a_lost_connection_it_is_an_error_and_stays_one(self, ways: Pair, size: int) -> None:
        old, new = content_of(24 * MIB, "old"), content_of(size, "new")
        with ways.storage() as storage, ways.direct() as other:
            storage.write("a", old)
            os.utime(ways.place.local / "a", (1, 1))
            stream = storage.open("a")
            with stream:
                pieces = [stream.read(MIB)]
                other.write("a", new)
                ways.lose_first()
                for _ in range(3):
                    with pytest.raises(SourceChangedError):
                        _read_on(stream, pieces)
                got = b"".join(pieces)
                assert same(got, old[: len(got)])
            assert same(storage.read("a"), new)

    @pytest.mark.soak
    def test_removed_and_then_lost(self, ways: Pair) -> None:
        with ways.storage() as storage, ways.direct() as other:
            storage.write("a", content_of(24 * MIB))
            with storage.open("a") as stream:
                stream.read(MIB)
                other.delete("a")
                ways.lose_first()
                with pytest.raises((NotFoundError, SourceChangedError)):
                    stream.read()


STEP = 40  # bytes; an SFTP request with SSH's own overhead has more


def counts(ways: Pair, case: str, direction: Direction, soak: bool) -> Sequence[int]:
    """After how many bytes to cut the connection: all through what the operation sends, or is sent."""
    operation, _, returned = CASES[case]
    old_state(ways.place.local)
    with ways.storage(endpoints=ways.endpoints[:1], shell="never") as storage:
        before = getattr(ways.first.counts(), direction)
        assert operation(storage) == returned
        total = getattr(ways.first.counts(), direction) - before
    assert total > 3 * STEP
    return range(1, total, STEP if soak else max(STEP, total // 3))


def old_state(local: Path) -> None:
    for each in local.iterdir():
        # The server of a connection that was cut may still remove what is temporary.
        each.unlink(missing_ok=True)
    (local / "a").write_bytes(b"old a")
    (local / "b").write_bytes(b"old b")


def state(local: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in local.iterdir() if not each.name.startswith(".~sb-")}


OLD = {"a": b"old a", "b": b"old b"}
LONG = content_of(300_000)
CASES: dict[str, tuple[Callable[[RemoteStorage], object], dict[str, bytes], object]] = {
    "write": (lambda storage: storage.write("a", b"new"), {**OLD, "a": b"new"}, True),
    "write of a new one": (lambda storage: storage.write("c", b"new"), {**OLD, "c": b"new"}, True),
    "write_stream": (
        lambda storage: storage.write_stream("a", io.BytesIO(b"new")),
        {**OLD, "a": b"new"},
        True,
    ),
    "write_many": (
        lambda storage: storage.write_many([("a", b"new"), ("c", b"new c")]),
        {**OLD, "a": b"new", "c": b"new c"},
        2,
    ),
    "delete": (lambda storage: storage.delete("a"), {"b": b"old b"}, True),
    "delete_many": (lambda storage: storage.delete_many(["a"]), {"b": b"old b"}, 1),
    "move": (lambda storage: storage.move("a", "c"), {"b": b"old b", "c": b"old a"}, True),
    "move onto another": (lambda storage: storage.move("a", "b"), {"b": b"old a"}, True),
    "copy": (lambda storage: storage.copy("a", "b"), {"a": b"old a", "b": b"old a"}, True),
    "create": (lambda storage: storage.create("c", b"new"), {**OLD, "c": b"new"}, True),
    "create what is there": (lambda storage: storage.create("a", b"new"), OLD, False),
}


class TestCutAnywhere:
    """The connection is cut after each number of bytes: an operation is done, or an error with nothing changed."""

    @pytest.mark.parametrize(
        ("case", "direction"), few(itertools.product(CASES, ("from_client", "from_server")), 6)
    )
    def test_with_an_endpoint_to_go_on_it_is_done(
        self, ways: Pair, case: str, direction: Direction, soak: bool
    ) -> None:
        operation, new, returned = CASES[case]
        local = ways.place.local
        wrong = {}
        cut = 0
        with ways.storage(endpoints=ways.endpoints[:1], shell="never") as storage:
            for count in counts(ways, case, direction, soak):
                old_state(local)
                # It is connected again, if the last one ended without.
                assert storage.read("b") == b"old b"
                accepted = ways.first.accepted
                ways.first.cut_after(count, direction)
                try:
                    result: object = operation(storage)
                except StorageError as error:
                    # Whether it was we who made the link cannot be told any more.
                    if "create" not in case or state(local) not in (OLD, new):
                        wrong[count] = repr(error), state(local)
                else:
                    if (result, state(local)) != (returned, new):
                        wrong[count] = repr(result), state(local)
                # What is left of the number is not to meet the next connection.
                ways.first.cut_after(1 << 40, direction)
                storage.exists("b")
                cut += ways.first.accepted > accepted
        assert wrong == {}
        assert cut >= 3

    @pytest.mark.soak
    @pytest.mark.parametrize(
        ("case", "direction"), few(itertools.product(CASES, ("from_client", "from_server")), 6)
    )
    def test_without_one_it_is_done_or_an_error(
        self, ways: Pair, case: str, direction: Direction, soak: bool
    ) -> None:
        operation, new, returned = CASES[case]
        local = ways.place.local
        wrong = {}
        raised = 0
        for count in counts(ways, case, direction, soak):
            old_state(local)
            # What is left of the number before is not to meet this connection, nor to refuse it.
            ways.first.cut_after(1 << 40, direction)
            ways.first.heal()
            with ways.storage(endpoints=ways.endpoints[:1], shell="never") as storage:
                ways.first.cut_after(count, direction, then_refuse=True)
                try:
                    result = operation(storage)
                except UnavailableError as error:
                    raised += 1
                    after = state(local)
                    # What was asked and not answered is done or not; of several objects each by itself.
                    kept = {*OLD.values(), *new.values()}
                    if after not in (OLD, new) and (case != "write_many" or not {*after.values()} <= kept):
                        wrong[count] = repr(error), after
                else:
                    if (result, state(local)) != (returned, new):
                        wrong[count] = repr(result), state(local)
        assert wrong == {}
        assert raised >= 3

    @pytest.mark.soak
    @pytest.mark.parametrize("share", few([step / 8 for step in (3, 7, 1, 2, 4, 5, 6)]))
    def test_long_write_is_whole(self, ways: Pair, share: float) -> None:
        with ways.storage() as storage:
            storage.write("a", b"old")
            ways.first.cut_after(round(share * len(LONG)), "from_client")
            assert storage.write_stream("a", io.BytesIO(LONG))
            assert same(storage.read("a"), LONG)
