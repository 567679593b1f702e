"""S3Storage and answers that are none of S3: a success is one only with all that its operation must have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from storage_backend import AccessDeniedError, BatchError, ConfigurationError, S3Storage, StorageError
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_faults import Fault, alter, error_200, reply
from tests.s3_server_wire import Response
from tests.tiers import spread

BUCKET = "bucket"
MIB = 1 << 20
OLD = b"old content"
LARGE = bytes(11 * MIB)


@dataclass
class Site:
    """A server, and a storage of it that makes its own requests or has a client of boto3's make them."""

    server: S3Server
    storage: S3Storage


def storage_of(server: S3Server, **options: Any) -> S3Storage:
    given: dict[str, Any] = {"sleep": lambda _: None, "attempts": 3, "io_timeout": 10.0}
    given |= {"multipart_chunk_size": 5 * MIB, "multipart_threshold": 5 * MIB}
    if "client" not in options:
        given |= {"endpoint_url": server.url, "region": "us-east-1"}
        given |= {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    return S3Storage(BUCKET, **given | options)


def boto3_client(server: S3Server) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(
            retries={"total_max_attempts": 1},
            proxies={},
            response_checksum_validation="when_required",
            signature_version="s3v4",
        ),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        with S3Server() as server:
            yield server


@pytest.fixture(scope="module")
def storages(server: S3Server) -> Iterator[dict[str, S3Storage]]:
    client = boto3_client(server)
    with (
        contextlib.closing(storage_of(server)) as own,
        contextlib.closing(storage_of(server, client=client)) as other,
        contextlib.closing(client),
    ):
        yield {"own": own, "client": other}


@pytest.fixture(params=["own", "client"])
def site(request: pytest.FixtureRequest, server: S3Server, storages: dict[str, S3Storage]) -> Site:
    server.faults.clear()
    server.create_bucket(BUCKET)
    server.put(BUCKET, "old", OLD)
    return Site(server, storages[request.param])


def upload(content: bytes) -> Callable[[S3Storage, Path], object]:
    def do(storage: S3Storage, directory: Path) -> object:
        path = directory / "up"
        path.write_bytes(content)
        return storage.upload(path, "new")

    return do


def opened(storage: S3Storage, _: Path) -> bytes:
    with storage.open("old") as reader:
        return reader.read()


VERBS: dict[str, tuple[str, Callable[[S3Storage, Path], object]]] = {
    "write": ("PutObject", lambda s, _: s.write("new", b"new")),
    "write_many": ("PutObject", lambda s, _: s.write_many([("new", b"new")])),
    "create": ("PutObject", lambda s, _: s.create("new", b"new")),
    "replace": ("PutObject", lambda s, _: s.replace("old", b"new", s.stat("old").etag or "")),
    "upload": ("PutObject", upload(b"new")),
    "upload_begins": ("CreateMultipartUpload", upload(LARGE)),
    "upload_part": ("UploadPart", upload(LARGE)),
    "upload_ends": ("CompleteMultipartUpload", upload(LARGE)),
    "delete": ("DeleteObject", lambda s, _: s.delete("old")),
    "delete_many": ("DeleteObjects", lambda s, _: s.delete_many(["old", "older"])),
    "exists": ("HeadObject", lambda s, _: s.exists("old")),
    "size": ("HeadObject", lambda s, _: s.size("old")),
    "read": ("GetObject", lambda s, _: s.read("old")),
    "read_many": ("GetObject", lambda s, _: [*s.read_many(["old"])]),
    "read_range": ("GetObject", lambda s, _: s.read_range("old", 1, 3)),
    "open": ("GetObject", opened),
    "download": ("GetObject", lambda s, d: s.download("old", d / "down")),
    "checksum": ("GetObject", lambda s, _: s.checksum("old")),
    "list": ("ListObjectsV2", lambda s, _: s.list()),
    "copy": ("CopyObject", lambda s, _: s.copy("old", "new")),
    "move": ("CopyObject", lambda s, _: s.move("old", "new")),
}


def without_etag(response: Response) -> Response:
    headers = {name: value for name, value in response.headers.items() if name != "ETag"}
    return replace(response, headers=headers, body=response.body.replace(b"ETag>", b"Tag>"))


def empty(response: Response) -> Response:
    return Response(200, {})


def xhtml(response: Response) -> Response:
    page = b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>Log in</body></html>'
    return Response(200, {"Content-Type": "application/xhtml+xml"}, page)


ANSWERS: dict[str, Fault] = {
    "html": reply(200, xml=False),
    "xhtml": alter(xhtml),
    "error": error_200("AccessDenied"),
    "no_etag": alter(without_etag),
    "empty": alter(empty),
}
# Answers that have no ETag; S3's own, though with another status; and those after which it is looked who was there first.
GOOD = {(verb, "no_etag") for verb in ("delete", "delete_many", "list", "upload_begins")}
GOOD |= {("delete", "empty")}
GOOD |= {(verb, answer) for verb in ("create", "replace") for answer in ("no_etag", "empty", "xhtml")}


@pytest.mark.parametrize(
    ("verb", "answer"),
    spread((verb, answer) for verb in VERBS for answer in ANSWERS if (verb, answer) not in GOOD),
)
def test_what_is_no_answer_of_s3_is_no_success(site: Site, verb: str, answer: str, tmp_path: Path) -> None:
    operation, do = VERBS[verb]
    site.server.faults.add(ANSWERS[answer], operation, times=None)
    with pytest.raises(StorageError) as caught:
        do(site.storage, tmp_path)
    error: Exception = caught.value
    while isinstance(error, BatchError):
        error = next(iter(error.failures.values()))
    assert isinstance(error, AccessDeniedError) == (answer == "error" and operation != "HeadObject")
    if type(error) is StorageError:
        assert "not a response of S3" in str(error)
        assert "endpoint_url" in str(error)


def part(response: Response) -> Response:
    headers = {**response.headers, "Content-Range": f"bytes 0-3/{len(OLD)}"}
    return replace(response, status=206, headers=headers, body=response.body[:4])


def part_with_200(response: Response) -> Response:
    return replace(part(response), status=200)


def part_without_range(response: Response) -> Response:
    return replace(response, status=206, body=response.body[:4])


@pytest.mark.parametrize("answer", [part, part_with_200, part_without_range])
@pytest.mark.parametrize("verb", ["read", "open", "download", "checksum", "read_many"])
def test_a_part_that_nobody_asked_for_is_not_the_object(
    site: Site, verb: str, answer: Callable[[Response], Response], tmp_path: Path
) -> None:
    site.server.faults.add(alter(answer), "GetObject", times=None)
    with pytest.raises(StorageError):
        VERBS[verb][1](site.storage, tmp_path)


@pytest.mark.parametrize(
    "content_range",
    ["bytes 1-2", "bytes 2-1/11", "bytes 1-11/11", "bytes 1-9/11", "bytes x-y/z", "items 1-2/11"],
)
def test_a_range_that_contradicts_itself_is_none(server: S3Server, content_range: str) -> None:
    def contradicted(response: Response) -> Response:
        return replace(response, headers={**response.headers, "Content-Range": content_range})

    server.faults.clear()
    server.create_bucket(BUCKET)
    server.put(BUCKET, "old", OLD)
    server.faults.add(alter(contradicted), "GetObject", times=None)
    with contextlib.closing(storage_of(server)) as storage, pytest.raises(StorageError):
        storage.read_range("old", 1, 3)


def test_one_answer_that_is_none_costs_one_more_request(server: S3Server) -> None:
    server.faults.clear()
    server.create_bucket(BUCKET)
    server.faults.add(reply(200, xml=False), "PutObject")
    server.faults.add(alter(part), "GetObject")
    with contextlib.closing(storage_of(server)) as storage:
        assert storage.write("new", OLD)
        assert storage.read("new") == OLD


@pytest.mark.parametrize("status", [301, 302, 308])
@pytest.mark.parametrize("verb", ["read", "exists", "list", "write", "upload_begins"])
def test_a_redirect_names_where_it_leads(
    server: S3Server, storages: dict[str, S3Storage], verb: str, status: int, tmp_path: Path
) -> None:
    headers = {"Location": "https://user:password@storage.example/bucket/old?X-Amz-Signature=secret"}
    page = Response(status, {**headers, "Content-Type": "text/html"}, b"<html><h1>Moved</h1></html>")
    server.faults.clear()
    server.create_bucket(BUCKET)
    server.faults.add(alter(lambda _: page), times=None)
    with pytest.raises(ConfigurationError) as caught:
        VERBS[verb][1](storages["own"], tmp_path)
    assert caught.value.parameter == "endpoint_url"
    assert "'https://storage.example/bucket/old'" in str(caught.value)
    assert 'endpoint_url="https://storage.example"' in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    "field",
    ["<Size>x</Size>", "<Size/>", "<Size>1</Size><LastModified>never</LastModified>"],
)
def test_an_entry_that_cannot_be_read_is_an_error_of_ours(site: Site, field: str) -> None:
    text = f"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>a</Key>{field}</Contents></ListBucketResult>"
    answer = Response(200, {"Content-Type": "application/xml"}, text.encode())
    site.server.faults.add(alter(lambda _: answer), "ListObjectsV2", times=None)
    with pytest.raises(StorageError, match="not a response of S3"):
        site.storage.list()


def test_a_client_that_is_sent_in_a_circle_is_an_error_of_ours(
    server: S3Server, storages: dict[str, S3Storage]
) -> None:
    server.faults.clear()
    server.create_bucket(BUCKET)
    page = Response(301, {"Location": server.url}, b"<html/>")
    server.faults.add(alter(lambda _: page), times=None)
    with pytest.raises(StorageError):
        storages["client"].read("old")
