"""S3Storage and a service that does not end: listings that lead nowhere, documents and sizes without bounds."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from storage_backend import S3Storage, StorageError
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import alter, raw
from tests.s3_server_wire import Response

BUCKET = "bucket"
MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with S3Server() as server:
            yield server


@pytest.fixture(scope="module")
def shared(server: S3Server) -> Iterator[S3Storage]:
    with contextlib.closing(storage_of(server)) as storage:
        yield storage


@pytest.fixture
def storage(server: S3Server, shared: S3Storage) -> S3Storage:
    server.faults.clear()
    server.actions.clear()
    server.create_bucket(BUCKET)
    for number in range(6):
        server.put(BUCKET, f"{number}", b"content")
    return shared


def storage_of(server: S3Server) -> S3Storage:
    return S3Storage(
        BUCKET,
        endpoint_url=server.url,
        region="us-east-1",
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        sleep=lambda _: None,
        attempts=3,
        io_timeout=10.0,
        multipart_chunk_size=5 * MIB,
        multipart_threshold=5 * MIB,
    )


def page(token: str, *keys: str) -> Response:
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2024-01-02T03:04:05.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
        f"<Size>1</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key in keys
    )
    text = (
        f"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
        f"{entries}</ListBucketResult>"
    )
    return Response(200, {"Content-Type": "application/xml"}, text.encode())


def leading_nowhere(kind: str) -> Callable[[Response], Response]:
    numbers = itertools.count()

    def change(_: Response) -> Response:
        number = next(numbers)
        if kind == "same token":
            return page("token", f"{number:09}")
        if kind == "circle of tokens":
            return page(f"{number % 5}", f"{number:09}")
        if kind == "empty pages":
            return page(f"{number}")
        return page(f"{number}", "a", "b")

    return change


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("same token", None),
        ("same token", "*"),
        ("circle of tokens", None),
        ("empty pages", None),
        ("same page", None),
    ],
)
def test_a_listing_that_leads_nowhere_ends(
    server: S3Server, storage: S3Storage, kind: str, pattern: str | None
) -> None:
    server.faults.add(alter(leading_nowhere(kind)), "ListObjectsV2", times=None)
    with pytest.raises(StorageError, match="expected"):
        storage.list(pattern)
    assert len(server.actions) < 1100


def test_some_empty_pages_are_none_of_it(server: S3Server, storage: S3Storage) -> None:
    numbers = itertools.count()
    server.faults.add(alter(lambda _: page(f"{next(numbers)}")), "ListObjectsV2", times=100)

    def last(response: Response) -> Response:
        return replace(
            response, body=re.sub(rb"<ContinuationToken>.*?</ContinuationToken>", b"", response.body)
        )

    server.faults.add(alter(last), "ListObjectsV2")
    with pytest.raises(StorageError, match="continuation token"):  # the server knows none of these tokens
        storage.list()
    assert len([record for record in server.actions if record.operation == "ListObjectsV2"]) == 101


def test_a_listing_of_uploads_that_leads_nowhere_ends(server: S3Server, storage: S3Storage) -> None:
    def change(_: Response) -> Response:
        text = (
            "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
            "<NextUploadIdMarker>u</NextUploadIdMarker></ListMultipartUploadsResult>"
        )
        return Response(200, {"Content-Type": "application/xml"}, text.encode())

    server.faults.add(alter(change), "ListMultipartUploads", times=None)
    with pytest.raises(StorageError, match="a new continuation token"):
        storage.abort_incomplete_uploads(timedelta(0))


class Endless:
    """Sends one document for ever, and counts its bytes."""

    def __init__(self, begin: bytes, status: bytes = b"200 OK") -> None:
        self.sent = 0
        self._begin = begin
        self._status = status

    def __call__(self, head: bytes, body: bytes) -> Iterator[bytes]:
        yield (
            b"HTTP/1.1 "
            + self._status
            + b"\r\nContent-Type: application/xml\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        yield b"%x\r\n%b\r\n" % (len(self._begin), self._begin)
        piece = b"<a>b</a>" * 8192
        while True:
            self.sent += len(piece)
            yield b"%x\r\n%b\r\n" % (len(piece), piece)


def uploaded(storage: S3Storage, directory: Path) -> object:
    (directory / "up").write_bytes(bytes(6 * MIB))
    return storage.upload(directory / "up", "new")


@pytest.mark.parametrize(
    ("operation", "begin", "do"),
    [
        ("ListObjectsV2", b"<ListBucketResult>", lambda s, _: s.list()),
        ("CopyObject", b"<CopyObjectResult>", lambda s, _: s.copy("0", "1")),
        ("DeleteObjects", b"<DeleteResult>", lambda s, _: s.delete_many(["0", "1"])),
        ("PutObject", b"<PutResult>", lambda s, _: s.write("0", b"new")),
        ("DeleteObject", b"<Gone>", lambda s, _: s.delete("0")),
        ("GetObject", b"<html>", lambda s, _: s.read("0")),
        ("CreateMultipartUpload", b"<InitiateMultipartUploadResult>", uploaded),
        ("CompleteMultipartUpload", b"<CompleteMultipartUploadResult>", uploaded),
        (
            "ListMultipartUploads",
            b"<ListMultipartUploadsResult>",
            lambda s, _: s.abort_incomplete_uploads(timedelta(0)),
        ),
    ],
)
@pytest.mark.parametrize("status", [b"200 OK", b"403 Forbidden"])
def test_an_endless_document_is_not_read_whole(  # noqa: PLR0917 - parameters of the table
    server: S3Server,
    storage: S3Storage,
    tmp_path: Path,
    operation: str,
    begin: bytes,
    status: bytes,
    do: Callable[[S3Storage, Path], object],
) -> None:
    sender = Endless(begin, status)
    server.faults.add(raw(sender), operation, times=None)
    with pytest.raises(StorageError):
        do(storage, tmp_path)
    assert sender.sent < 100 * MIB  # in up to three tries, with what the system takes in by itself


@pytest.mark.parametrize("verb", ["read", "open", "download", "read_range"])
def test_a_size_that_is_a_lie_takes_no_memory(
    server: S3Server, storage: S3Storage, tmp_path: Path, verb: str
) -> None:
    def change(head: bytes, body: bytes) -> Iterator[bytes]:
        size = 10**15
        head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % size, head)
        yield head + body

    server.faults.add(raw(change), "GetObject", times=None)
    verbs: dict[str, Callable[[], Any]] = {
        "read": lambda: storage.read("0"),
        "open": lambda: storage.open("0").read(),
        "download": lambda: storage.download("0", tmp_path / "down"),
        "read_range": lambda: storage.read_range("0", 0),
    }
    with pytest.raises(StorageError):
        verbs[verb]()
