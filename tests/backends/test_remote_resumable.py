"""RemoteStorage's upload and download of large files: broken off, gone on with, beside others, and of what changes meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import pytest

from tests.tiers import few

pytest.importorskip("paramiko")

from storage_backend import NoEndpointError, QuotaExceededError, SourceChangedError
from storage_backend.identifiers import RESERVED
from storage_backend.testing.subject import same
from tests.backends.local_ways import small_disk
from tests.ssh_pairs import Pair, pair

if TYPE_CHECKING:
    from storage_backend import RemoteStorage
    from tests.ssh_servers import SSHPlace

MIB = 1 << 20
SIZE = 64 * MIB
Way = Literal["upload", "download"]
both_ways = pytest.mark.parametrize("way", ["upload", "download"])


@pytest.fixture
def ways(openssh_place: SSHPlace) -> Iterator[Pair]:
    with pair(openssh_place) as both:
        yield both


def content_of(size: int, seed: str = "") -> bytes:
    return hashlib.shake_256(f"{seed}{size}".encode()).digest(size)


class Transfer:
    """One file that is to go one way, as "big".

    Attributes:
        source: where it is.
        target: where it is to be, on this machine's disk either way.
    """

    def __init__(self, ways: Pair, way: Way, directory: Path, content: bytes) -> None:
        self.ways = ways
        self.way = way
        self.local = directory / "big"
        far = ways.place.local / "big"
        self.source, self.target = (self.local, far) if way == "upload" else (far, self.local)
        self.source.write_bytes(content)
        # What is long past: a time of now may be that of a change in the same second.
        os.utime(self.source, (1_000_000_000, 1_000_000_000))

    def run(self, storage: RemoteStorage) -> None:
        if self.way == "upload":
            assert storage.upload(self.local, "big")
        else:
            assert storage.download("big", self.local)

    def break_off(self, after: int) -> None:
        """Lose both endpoints after so many bytes; they are there again afterwards."""
        first, second = self.ways.first, self.ways.second
        with self.ways.storage() as storage:
            second.refuse()
            first.cut_after(after, "from_client" if self.way == "upload" else "from_server", then_refuse=True)
            with pytest.raises(NoEndpointError):
                self.run(storage)
        first.heal()
        second.heal()

    def bytes_of(self, storage: RemoteStorage) -> int:
        """How many bytes go through the first proxy for a transfer."""
        before = self.ways.first.counts()
        self.run(storage)
        after = self.ways.first.counts()
        if self.way == "upload":
            return after.from_client - before.from_client
        return after.from_server - before.from_server

    def partial(self) -> list[Path]:
        return sorted(self.target.parent.glob(f"{RESERVED}*"))


@both_ways
class TestResume:
    def test_the_next_call_transfers_only_the_rest(self, ways: Pair, way: Way, tmp_path: Path) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        transfer.target.write_bytes(b"old")
        transfer.break_off(40 * MIB)
        assert transfer.target.read_bytes() == b"old"
        assert len(transfer.partial()) == 1
        with ways.storage() as storage:
            assert "big" in storage.list()
            assert not [name for name in storage.list() if RESERVED in name]
            assert transfer.bytes_of(storage) < 36 * MIB
        assert same(transfer.target.read_bytes(), content)
        assert transfer.target.stat().st_mtime == 1_000_000_000 or way == "download"
        assert transfer.partial() == []

    @pytest.mark.soak
    def test_a_display_is_told_of_what_was_there_and_of_the_rest(
        self, ways: Pair, way: Way, tmp_path: Path
    ) -> None:
        transfer = Transfer(ways, way, tmp_path, content_of(SIZE))
        transfer.break_off(40 * MIB)
        moved: list[int] = []
        with ways.storage() as storage:
            if way == "upload":
                assert storage.hooks.upload(transfer.local, "big", moved.append)
            else:
                assert storage.hooks.download("big", transfer.local, moved.append)
        assert sum(moved) == SIZE
        assert moved[0] > 8 * MIB
        assert max(moved[1:]) <= 1 * MIB

    @pytest.mark.soak
    def test_several_breaks_add_up(self, ways: Pair, way: Way, tmp_path: Path) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        for _ in range(4):
            transfer.break_off(16 * MIB)
        with ways.storage() as storage:
            assert transfer.bytes_of(storage) < SIZE // 2
        assert same(transfer.target.read_bytes(), content)
        assert transfer.partial() == []

    @pytest.mark.soak
    @pytest.mark.parametrize("size", few([SIZE, SIZE + 5, SIZE - 5], 1))
    def test_another_source_is_transferred_from_its_beginning(
        self, ways: Pair, way: Way, size: int, tmp_path: Path
    ) -> None:
        transfer = Transfer(ways, way, tmp_path, content_of(SIZE))
        transfer.break_off(40 * MIB)
        other = content_of(size, "other")
        transfer.source.write_bytes(other)
        with ways.storage() as storage:
            assert transfer.bytes_of(storage) > 60 * MIB
            assert same(transfer.target.read_bytes(), other)
            storage.cleanup(0)
        if way == "upload":
            assert transfer.partial() == []

    @pytest.mark.soak
    def test_partial_file_that_is_too_long_is_of_no_use(self, ways: Pair, way: Way, tmp_path: Path) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        transfer.break_off(40 * MIB)
        (partial,) = transfer.partial()
        with partial.open("ab") as file:
            file.truncate(SIZE + 1)
        with ways.storage() as storage:
            transfer.run(storage)
        assert same(transfer.target.read_bytes(), content)

    @pytest.mark.soak
    def test_the_last_of_a_partial_file_is_not_trusted(self, ways: Pair, way: Way, tmp_path: Path) -> None:
        """What a server had under way, or a machine lost with its power, is transferred again."""
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        transfer.break_off(40 * MIB)
        (partial,) = transfer.partial()
        size = partial.stat().st_size
        with partial.open("r+b") as file:
            file.seek(size - 3 * MIB)
            file.write(bytes(3 * MIB))
        with ways.storage() as storage:
            transfer.run(storage)
        assert same(transfer.target.read_bytes(), content)

    @pytest.mark.soak
    def test_partial_file_that_holds_something_else_is_found_out(
        self, ways: Pair, way: Way, tmp_path: Path
    ) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        transfer.break_off(40 * MIB)
        (partial,) = transfer.partial()
        with partial.open("r+b") as file:
            file.write(b"something else")
        with ways.storage() as storage:
            transfer.run(storage)
        assert same(transfer.target.read_bytes(), content)

    @pytest.mark.soak
    def test_killed_process_leaves_what_the_next_goes_on_with(
        self, ways: Pair, way: Way, tmp_path: Path
    ) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        with Killed(transfer, ways) as killed:
            killed.wait_for(24 * MIB)
        assert not transfer.target.exists()
        with ways.storage() as storage:
            assert transfer.bytes_of(storage) < SIZE - 16 * MIB
        assert same(transfer.target.read_bytes(), content)
        assert transfer.partial() == []

    @pytest.mark.soak
    def test_several_at_once_each_succeed(self, ways: Pair, way: Way, tmp_path: Path) -> None:
        content = content_of(24 * MIB)
        transfer = Transfer(ways, way, tmp_path, content)

        def work(_: int) -> bool:
            with ways.storage() as storage:
                transfer.run(storage)
                return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))
        assert same(transfer.target.read_bytes(), content)
        assert transfer.partial() == []

    @pytest.mark.soak
    def test_two_processes_at_once_each_succeed(self, ways: Pair, way: Way, tmp_path: Path) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, way, tmp_path, content)
        ended = [started(transfer, ways) for _ in range(2)]
        assert [process.wait() for process in ended] == [0, 0]
        assert same(transfer.target.read_bytes(), content)
        assert transfer.partial() == []


def started(transfer: Transfer, ways: Pair) -> subprocess.Popen[bytes]:
    call = "upload(path, 'big')" if transfer.way == "upload" else "download('big', path)"
    program = "\n".join(
        [
            "from storage_backend.backends.remote.storage import RemoteStorage",
            f"path = {str(transfer.local)!r}",
            f"with RemoteStorage({ways.config()!r}, {ways.place.base!r}) as storage:",
            f"    storage.{call}",
        ]
    )
    return subprocess.Popen([sys.executable, "-W", "error", "-c", program])


class Killed:
    """A process that transfers, and is killed by SIGKILL in the end, in the middle."""

    def __init__(self, transfer: Transfer, ways: Pair) -> None:
        # Slow enough that its end does not come first: so many bytes are on the way each 0.4 s, the windows' worth.
        ways.first.set_delay(0.2)
        self._ways = ways
        self._transfer = transfer
        self._process = started(transfer, ways)

    def __enter__(self) -> Self:
        return self

    def wait_for(self, size: int) -> None:
        """Return once the partial file has so many bytes."""
        while not any(each.stat().st_size >= size for each in self._transfer.partial()):
            assert self._process.poll() is None

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL
        self._ways.first.set_delay(0.0)


class TestChanged:
    @pytest.mark.soak
    def test_file_that_grows_while_it_is_sent_is_refused(self, ways: Pair, tmp_path: Path) -> None:
        content = content_of(SIZE)
        transfer = Transfer(ways, "upload", tmp_path, content)
        transfer.target.write_bytes(b"old")
        with ways.storage() as storage, ThreadPoolExecutor(1) as pool:
            ways.first.set_delay(0.1)
            sending = pool.submit(transfer.run, storage)
            while not transfer.partial():
                assert not sending.done()
            with transfer.local.open("r+b") as file:
                file.write(b"changed")
            with pytest.raises(SourceChangedError):
                sending.result()
            ways.first.set_delay(0.0)
            assert storage.read("big") == b"old"
            assert transfer.partial() == []

    @pytest.mark.soak
    def test_object_replaced_during_a_download_is_fetched_as_it_was(self, ways: Pair, tmp_path: Path) -> None:
        old, new = content_of(SIZE), content_of(SIZE, "new")
        transfer = Transfer(ways, "download", tmp_path, old)
        with ways.storage() as storage, ways.direct() as other, ThreadPoolExecutor(1) as pool:
            ways.first.set_delay(0.1)
            fetching = pool.submit(transfer.run, storage)
            while not transfer.partial():
                assert not fetching.done()
            other.write("big", new)
            fetching.result()
            assert same(transfer.local.read_bytes(), old)

    @pytest.mark.soak
    def test_object_replaced_before_the_connection_is_lost_is_an_error(
        self, ways: Pair, tmp_path: Path
    ) -> None:
        transfer = Transfer(ways, "download", tmp_path, content_of(SIZE))
        new = content_of(SIZE, "new")
        with ways.storage() as storage, ways.direct() as other, ThreadPoolExecutor(1) as pool:
            ways.first.set_delay(0.1)
            fetching = pool.submit(transfer.run, storage)
            while not transfer.partial():
                assert not fetching.done()
            other.write("big", new)
            ways.lose_first()
            with pytest.raises(SourceChangedError):
                fetching.result()
            assert not transfer.local.exists()
            assert transfer.partial() == []
            transfer.run(storage)
            assert same(transfer.local.read_bytes(), new)


class TestCleanup:
    def test_only_old_temporary_names_go(self, ways: Pair, tmp_path: Path) -> None:
        transfer = Transfer(ways, "upload", tmp_path, content_of(SIZE))
        transfer.break_off(40 * MIB)
        (partial,) = transfer.partial()
        folder = ways.place.local / "a" / "b"
        folder.mkdir(parents=True)
        old, fresh, normal = folder / f"{RESERVED}old", folder / f"{RESERVED}new", folder / "old"
        for each in (old, fresh, normal):
            each.write_bytes(b"x")
        for each in (old, normal):
            os.utime(each, (1_000_000_000, 1_000_000_000))
        with ways.direct() as storage:
            assert storage.list() == ["a/b/old"]
            assert storage.cleanup() == 1
            assert ways.temporary() == sorted([partial, fresh])
            assert storage.cleanup(0) == 2
            assert ways.temporary() == []
            assert storage.list() == ["a/b/old"]


class TestLong:
    def test_more_than_half_a_gibibyte_goes_over_one_connection(
        self, ways: Pair, tmp_path: Path, soak: bool
    ) -> None:
        """paramiko's own limit for a new exchange of keys is 512 MiB."""
        if not soak:
            pytest.skip("long: run with --soak")
        transfer = Transfer(ways, "upload", tmp_path, b"")
        block = content_of(MIB)
        digest = hashlib.sha256()
        with transfer.local.open("wb") as file:
            for number in range(1200):
                piece = number.to_bytes(8) + block[8:]
                file.write(piece)
                digest.update(piece)
        with ways.storage() as storage:
            transfer.run(storage)
            assert storage.checksum("big") == digest.hexdigest()
            assert storage.download("big", tmp_path / "back")
            with (tmp_path / "back").open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
        assert ways.first.accepted == 1


@pytest.mark.parametrize("size", [1000, 9 * MIB], ids=["small", "resumable"])
def test_a_link_stays_a_pipe_is_written_to_and_a_full_disk_named(
    ways: Pair, tmp_path: Path, size: int
) -> None:
    content = content_of(size)
    (ways.place.local / "big").write_bytes(content)
    (tmp_path / "link").symlink_to("there")
    os.mkfifo(tmp_path / "fifo")
    got: list[bytes] = []
    with ways.storage() as storage:
        storage.download("big", tmp_path / "link")
        reader = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_bytes()), daemon=True)
        reader.start()
        storage.download("big", tmp_path / "fifo")
        reader.join()
        with small_disk(tmp_path / "disk") as disk:
            (disk / "taken").write_bytes(bytes((1 << 20) - (64 << 10)))
            if size > MIB:
                with pytest.raises(QuotaExceededError, match=rf"no space left for this user: {disk}/big\Z"):
                    storage.download("big", disk / "big")
    assert (tmp_path / "link").is_symlink()
    assert same((tmp_path / "there").read_bytes(), content)
    assert same(got[0], content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "fifo", "link", "there"]
