"""S3Storage behind a proxy that sends bodies in chunks, without their length, and breaks them."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage_backend import S3Storage, StorageError, UnavailableError
from tests.backends.test_s3_responses import BUCKET, Site, server, site, storages
from tests.s3_server_faults import Fault, alter, raw
from tests.s3_server_wire import Request
from tests.tiers import spread

__all__ = ["server", "site", "storages"]  # fixtures

CONTENT = bytes(range(256)) * 400


def opened(storage: S3Storage, _: Path) -> bytes:
    with storage.open("old") as reader:
        return reader.read()


def downloaded(storage: S3Storage, directory: Path) -> bytes:
    storage.download("old", directory / "down")
    return (directory / "down").read_bytes()


VERBS: dict[str, tuple[Callable[[S3Storage, Path], object], object]] = {
    "read": (lambda s, _: s.read("old"), CONTENT),
    "read_range": (lambda s, _: s.read_range("old", 10), CONTENT[10:]),
    "read_many": (lambda s, _: dict(s.read_many(["old"]))["old"], CONTENT),
    "open": (opened, CONTENT),
    "download": (downloaded, CONTENT),
    "checksum": (lambda s, _: s.checksum("old"), hashlib.sha256(CONTENT).hexdigest()),
}
BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "within a chunk": lambda body: b"%x\r\n%b" % (len(body), body[:1000]),
    "between two": lambda body: b"3e8\r\n%b\r\n" % body[:1000],
    "in a size": lambda body: b"3e8\r\n%b\r\nzz\r\n" % body[:1000],
    "behind a chunk": lambda body: b"3e8\r\n" + body[:1010],
}


def broken(how: str, *, ranges: bool) -> Fault:
    def change(head: bytes, body: bytes) -> Iterator[bytes]:
        head = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", head)
        yield head + BREAKS[how](body)

    return raw(change, ranges=ranges)


class Proxy:
    """Tells no lengths, and breaks the first *times* bodies; *ranges* says whether it passes on those."""

    def __init__(self, how: str, times: int, *, ranges: bool) -> None:
        self._how = how
        self._left = times
        self._ranges = ranges

    def __call__(self, request: Request) -> Fault | None:
        if request.operation == "GetObject" and self._left:
            self._left -= 1
            return broken(self._how, ranges=self._ranges)
        if request.operation not in {"GetObject", "HeadObject"}:
            return None
        return alter(lambda response: replace(response, chunked=True), ranges=self._ranges)


@pytest.mark.parametrize(
    ("verb", "how", "ranges"),
    spread((verb, how, ranges) for verb in VERBS for how in BREAKS for ranges in (False, True)),
)
def test_a_broken_body_in_chunks_is_read_again(
    site: Site, verb: str, how: str, ranges: bool, tmp_path: Path
) -> None:
    do, expected = VERBS[verb]
    site.server.put(BUCKET, "old", CONTENT)
    site.server.faults.choose = Proxy(how, 1, ranges=ranges)
    assert do(site.storage, tmp_path) == expected
    site.server.faults.choose = Proxy(how, 1000, ranges=False)
    with pytest.raises(StorageError) as caught:
        do(site.storage, tmp_path)
    assert caught.value.retryable
    if verb != "read_many":
        assert isinstance(caught.value, UnavailableError)


def test_the_end_of_the_connection_is_not_the_end_of_a_body(site: Site, tmp_path: Path) -> None:
    def change(head: bytes, body: bytes) -> Iterator[bytes]:
        yield re.sub(rb"Content-Length: \d+\r\n", b"", head) + body[:1000]

    site.server.put(BUCKET, "old", CONTENT)
    site.server.faults.add(raw(change), "GetObject", times=None)
    site.server.faults.add(alter(lambda response: replace(response, chunked=True)), "HeadObject", times=None)
    for do, _ in VERBS.values():
        with pytest.raises(StorageError):
            do(site.storage, tmp_path)


@pytest.mark.parametrize("size", [0, 1, 1000])
@pytest.mark.parametrize("verb", VERBS)
def test_a_body_that_goes_on_after_the_size_that_was_told_is_not_the_object(
    site: Site, verb: str, size: int, tmp_path: Path
) -> None:
    site.server.put(BUCKET, "old", CONTENT)
    chunked = alter(lambda response: replace(response, chunked=True), ranges=False)
    site.server.faults.add(chunked, "GetObject", times=None)
    short = alter(lambda response: replace(response, body=response.body[:size]))
    site.server.faults.add(short, "HeadObject", times=None)
    with pytest.raises(StorageError):
        VERBS[verb][0](site.storage, tmp_path)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "read_range"])
def test_what_is_said_to_be_empty_is_compared_with_its_checksum(
    site: Site, verb: str, tmp_path: Path
) -> None:
    crc32 = base64.b64encode(zlib.crc32(CONTENT).to_bytes(4)).decode()
    empty = alter(
        lambda response: replace(
            response, body=b"", headers={**response.headers, "x-amz-checksum-crc32": crc32}
        )
    )
    site.server.put(BUCKET, "old", CONTENT)
    site.server.faults.add(empty, times=None)
    with pytest.raises(StorageError):
        VERBS[verb][0](site.storage, tmp_path)
