"""S3Storage: the conformance suite over real servers, in-process moto, a client of the caller's, and through prefixes."""

from __future__ import annotations

import pickle
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest

from storage_backend import S3Storage
from storage_backend.testing import (
    AwkwardIdentifiers,
    Conditions,
    ConformanceSuite,
    Deleting,
    Listing,
    Ranges,
    Reading,
    Streams,
    Subject,
    Writers,
    Writing,
)
from storage_backend.testing.subject import content_of, everything, same
from tests.s3_server import S3Server
from tests.s3_servers import BucketPlace
from tests.topics import ObjectTopics

PREFIX = "/pre//fix/"
LACKS = {
    "modified": "listings show when an object was stored; the source's time is in its metadata only",
    "one deleter": "S3 deletes without saying whether there was anything: several may have seen the object just before",
}
UNLOCKED = {
    "one winner": "moto looks for the object, and stores it afterwards, without a lock (put_object of moto.s3.responses, 5.2.5)"
}
MOTO = {
    **UNLOCKED,
    "newlines": "moto's router finds no route for a path with a line feed, and answers 404 with a page",
}
RCLONE = {
    "beneath": "objects are files: PUT of `a/b` beside `a` is refused with a 500, DELETE of `a/b` removes `a`",
    "conditions": "If-Match and If-None-Match are ignored",
    "long names": "a segment is a file's name: PUT of more than 255 bytes is answered by a 500, and listed nevertheless",
    "whole reads": "an object that is being written is cut, mixed or without ETag to those who look",
}
MOCK = {
    **UNLOCKED,
    "processes": "moto's objects live in one process; a spawned child talks to Amazon",
    "urls": "nothing listens: moto answers boto3 before anything is sent",
}
CLIENT = {
    "fork": "a forked child has the client's open connections in common with its parent",
    "pickle": "clients do not pickle",
}


def storage_at(place: BucketPlace, prefix: str = "", **options: Any) -> S3Storage:
    return S3Storage(
        place.bucket,
        prefix,
        endpoint_url=place.url,
        region=place.region,
        access_key=place.access_key,
        secret_key=place.secret_key,
        **options,
    )


@cache
def session_with(access_key: str, secret_key: str) -> Any:
    """A session of boto3 that is kept, since making one takes longer than most tests."""
    import boto3

    return boto3.Session(aws_access_key_id=access_key, aws_secret_access_key=secret_key)


class AtPlace:
    """Makes instances for a place whose credentials boto3 finds by itself, in spawned children too."""

    def __init__(self, place: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
        import boto3

        self._place = place
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", place.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", place.secret_key)
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", session_with(place.access_key, place.secret_key))

    def storage(self, prefix: str = "", **options: Any) -> S3Storage:
        place = self._place
        return S3Storage(place.bucket, prefix, endpoint_url=place.url, region=place.region, **options)

    def subject(self, lacks: Mapping[str, str], prefix: str = "", **options: Any) -> Subject:
        return Subject(make=lambda: self.storage(prefix, **options), lacks={**LACKS, **lacks})


@pytest.fixture
def moto(moto_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> AtPlace:
    return AtPlace(moto_bucket, monkeypatch)


@pytest.fixture
def rclone(rclone_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> AtPlace:
    return AtPlace(rclone_bucket, monkeypatch)


@pytest.fixture
def strict(strict_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> AtPlace:
    return AtPlace(strict_bucket, monkeypatch)


class TestMoto(Conditions):
    """The conditions alone: a second implementation of what S3 says of If-Match and If-None-Match."""

    @pytest.fixture
    def subject(self, moto: AtPlace) -> Subject:
        return moto.subject(MOTO)


class TestRclone(ObjectTopics):
    @pytest.fixture
    def subject(self, rclone: AtPlace) -> Subject:
        return rclone.subject(RCLONE)


@pytest.fixture(scope="class")
def mocked_session() -> Iterator[Any]:
    """A session of boto3 that in-process moto answers."""
    import boto3
    from moto import mock_aws

    with mock_aws():
        yield boto3.Session()


@pytest.fixture
def mocked_bucket(mocked_session: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket there, which boto3's own functions reach."""
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", mocked_session)
    name = f"test-{uuid.uuid4().hex}"
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
    return name


class TestMock(Reading, Deleting):
    """In-process moto, as users' tests have it: what our own requests meet there beside boto3's."""

    @pytest.fixture
    def subject(self, mocked_bucket: str) -> Subject:
        return Subject(make=lambda: S3Storage(mocked_bucket, region="us-east-1"), lacks={**LACKS, **MOCK})


PARTS: Mapping[str, Any] = {"multipart_chunk_size": 5 << 20, "multipart_threshold": 1 << 20}
"""As small as S3 allows, so that the suite's larger objects come in parts."""


@pytest.fixture(scope="class")
def strict_instance(strict_place: BucketPlace) -> Iterator[S3Storage]:
    """One for all tests of a class."""
    with (
        pytest.MonkeyPatch.context() as patch,
        AtPlace(strict_place, patch).storage(PREFIX, **PARTS) as storage,
    ):
        yield storage


class TestStrict(ConformanceSuite):
    """Our own server, which lacks nothing that S3 has; beneath a prefix that is awkward itself."""

    @pytest.fixture
    def subject(self, strict: AtPlace, strict_instance: S3Storage) -> Subject:
        return Subject(lambda: strict.storage(PREFIX, **PARTS), LACKS, strict_instance)


@pytest.fixture(scope="class")
def client(strict_place: BucketPlace) -> Any:
    """A client of the caller's own."""
    from botocore.config import Config

    return session_with(strict_place.access_key, strict_place.secret_key).client(
        "s3",
        endpoint_url=strict_place.url,
        region_name=strict_place.region,
        config=Config(signature_version="s3v4"),  # else boto3 signs URLs by version 2
    )


class TestClient(
    Reading, Writing, Conditions, Deleting, Listing, Ranges, Streams, Writers, AwkwardIdentifiers
):
    """A client of the caller's, with boto3's own checksums: every request is boto3's."""

    @pytest.fixture
    def subject(self, strict_bucket: BucketPlace, client: Any) -> Subject:
        return Subject(
            make=lambda: S3Storage(strict_bucket.bucket, client=client, **PARTS), lacks={**LACKS, **CLIENT}
        )


def test_pickle_refers_to_secrets(strict_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB_TEST_ACCESS_KEY", strict_bucket.access_key)
    monkeypatch.setenv("SB_TEST_SECRET_KEY", strict_bucket.secret_key)
    with S3Storage(
        strict_bucket.bucket,
        endpoint_url=strict_bucket.url,
        region=strict_bucket.region,
        access_key="env:SB_TEST_ACCESS_KEY",
        secret_key="env:SB_TEST_SECRET_KEY",
    ) as storage:
        storage.write("a", b"content")
        pickled = pickle.dumps(storage)
        assert strict_bucket.secret_key.encode() not in pickled
        with pickle.loads(pickled) as copy:
            assert copy.read("a") == b"content"


class TestAnonymous:
    """Requests without a signature, at a server that lets everybody in."""

    @pytest.fixture
    def server(self) -> Iterator[S3Server]:
        with S3Server(anonymous=True) as server:
            server.create_bucket("bucket")
            yield server

    @pytest.fixture
    def storage(self, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Storage]:
        # Credentials that the server would refuse.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody's")
        with S3Storage(
            "bucket", "p", endpoint_url=server.url, region=server.region, anonymous=True, **PARTS
        ) as storage:
            yield storage

    def test_every_kind_of_request_is_let_in(self, server: S3Server, storage: S3Storage) -> None:
        objects = {"a": b"small", "b/c d": content_of(300_000), "large": content_of(11 << 20)}
        assert storage.write_many(objects.items()) == 3
        with storage.open("b/e", "wb") as writer:
            writer.write(objects["large"])
        assert storage.copy("b/c d", "copy") is True
        assert storage.create("a", b"x") is False
        assert storage.read_range("large", 5, 9) == objects["large"][5:9]
        expected = {**objects, "b/e": objects["large"], "copy": objects["b/c d"]}
        assert same(everything(storage), expected)
        assert storage.list("b/*") == ["b/c d", "b/e"]
        assert storage.delete("a") is True
        assert storage.delete_many(["b/e", "copy"]) == 2
        assert sorted(server.objects("bucket")) == ["p/b/c d", "p/large"]
        assert server.rejected == []
        assert not [record for record in server.actions if "authorization" in record.headers]

    def test_url_is_not_signed(self, storage: S3Storage) -> None:
        storage.write("a b", b"content")
        url = storage.get_url("a b")
        assert "?" not in url
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert answer.read() == b"content"

    def test_it_pickles(self, storage: S3Storage) -> None:
        storage.write("a", b"content")
        with pickle.loads(pickle.dumps(storage)) as copy:
            assert copy.read("a") == b"content"

    def test_server_that_wants_signatures_refuses(self, server: S3Server, storage: S3Storage) -> None:
        server.anonymous = False
        for call in (storage.read, storage.exists, lambda name: storage.write(name, b"x")):
            with pytest.raises(PermissionError):
                call("a")
        with pytest.raises(PermissionError):
            storage.list()
