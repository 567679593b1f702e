"""S3Storage: large objects into files, by several streams at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import (
    IntegrityError,
    QuotaExceededError,
    S3Storage,
    SourceChangedError,
    UnavailableError,
)
from storage_backend.backends.s3 import downloading
from storage_backend.testing.subject import content_of, same
from tests import s3_server_faults as faults
from tests.backends.local_ways import small_disk
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server

SIZE = (8 << 20) + 12_345
PIECE = 1 << 20


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helpers join at once, with pieces that suit a test."""
    monkeypatch.setattr(downloading, "PIECE", PIECE)
    monkeypatch.setattr(downloading, "PARALLEL_FROM", 2 * PIECE)
    monkeypatch.setattr(downloading, "ALONE_SECONDS", 0.0)


def storage_at(server: S3Server, **options: Any) -> S3Storage:
    return S3Storage(
        "bucket",
        endpoint_url=server.url,
        region=server.region,
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        sleep=lambda _: None,
        checksum="crc32",
        io_timeout=5.0,
        multipart_threshold=SIZE,
        **options,
    )


def gets(server: S3Server) -> list[str]:
    """The ranges that were asked for; "" of the whole."""
    return [record.headers.get("range", "") for record in server.actions if record.operation == "GetObject"]


def test_streams_share_the_object(server: S3Server, tmp_path: Path) -> None:
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        # The first stream stands still until the others have all that is theirs.
        server.faults.add(faults.stall(1.0, "response_body", after=PIECE // 2), "GetObject", nth=1)
        storage.download("a", tmp_path / "file")
    assert same((tmp_path / "file").read_bytes(), content_of(SIZE))
    asked = gets(server)
    assert asked[0] == ""
    assert len(asked) >= 4
    assert len(asked) == len(set(asked))
    assert len({record.connection for record in server.actions if record.operation == "GetObject"}) > 1


def test_service_without_ranges_is_read_by_one(server: S3Server, tmp_path: Path) -> None:
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        server.faults.add(faults.ignore_range(), "GetObject", times=None)
        storage.download("a", tmp_path / "file")
    assert same((tmp_path / "file").read_bytes(), content_of(SIZE))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("nth", [1, 2, 3, 5])
def test_broken_stream_goes_on_where_it_was(server: S3Server, tmp_path: Path, nth: int) -> None:
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        server.faults.add(faults.reset("response_body", PIECE // 3), "GetObject", nth=nth)
        storage.download("a", tmp_path / "file")
    assert same((tmp_path / "file").read_bytes(), content_of(SIZE))


def test_damaged_piece_is_found_out(server: S3Server, tmp_path: Path) -> None:
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        server.faults.add(faults.stall(0.5, "response_body", after=PIECE // 2), "GetObject", nth=1)
        server.faults.add(faults.corrupt_response(1000), "GetObject", nth=2)
        with pytest.raises(IntegrityError, match="crc32"):
            storage.download("a", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_failing_helper_fails_the_download_and_leaves_nothing(server: S3Server, tmp_path: Path) -> None:
    with storage_at(server, attempts=2) as storage:
        storage.write("a", content_of(SIZE))
        (tmp_path / "file").write_bytes(b"old")
        server.faults.choose = lambda request: (
            faults.reply(503) if request.method == "GET" and "range" in request.headers else None
        )
        with pytest.raises(UnavailableError):
            storage.download("a", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_overwritten_object_is_no_mixture(server: S3Server, tmp_path: Path) -> None:
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        changed = threading.Event()

        def overwrite(request: Any) -> None:
            if request.method == "GET" and "range" in request.headers and not changed.is_set():
                changed.set()
                server.put("bucket", "a", content_of(SIZE, seed=1))

        server.faults.choose = overwrite
        with pytest.raises(SourceChangedError):
            storage.download("a", tmp_path / "file")
    assert changed.is_set()
    assert list(tmp_path.iterdir()) == []


def test_interrupt_waits_for_the_helpers(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A helper that went on writing would do so into whatever file has the descriptor's number next.
    at_work = 0
    most = 0
    lock = threading.Lock()
    block = downloading._ParallelDownload._block

    def watched(self: Any, reader: Any, view: memoryview, offset: int, crc: int) -> int:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
            interrupt = threading.current_thread() is threading.main_thread() and offset > PIECE // 2
        try:
            if interrupt:
                raise KeyboardInterrupt
            return block(self, reader, view, offset, crc)
        finally:
            with lock:
                at_work -= 1

    monkeypatch.setattr(downloading._ParallelDownload, "_block", watched)
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        with pytest.raises(KeyboardInterrupt):
            storage.download("a", tmp_path / "file")
        assert at_work == 0
        assert most >= 1
        assert list(tmp_path.iterdir()) == []
        monkeypatch.undo()
        storage.download("a", tmp_path / "file")
    assert same((tmp_path / "file").read_bytes(), content_of(SIZE))


def test_a_link_stays_and_a_pipe_gets_all_once(server: S3Server, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    with storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        storage.download("a", tmp_path / "link")
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_bytes()), daemon=True)
        reader.start()
        # The first answer breaks off; the pipe must not have the beginning twice.
        server.faults.add(faults.reset("response_body", after=PIECE // 2), "GetObject", nth=1)
        storage.download("a", tmp_path / "fifo")
        reader.join()
    assert (tmp_path / "link").is_symlink()
    assert same((tmp_path / "file").read_bytes(), content_of(SIZE))
    assert same(got[0], content_of(SIZE))


def test_a_full_disk_is_not_the_buckets(server: S3Server, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, storage_at(server) as storage:
        storage.write("a", content_of(SIZE))
        with pytest.raises(QuotaExceededError, match=rf"no space left for this user: {disk}/file\Z"):
            storage.download("a", disk / "file")
        assert list(disk.iterdir()) == []
