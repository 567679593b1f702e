"""S3Storage: the conformance suite over real servers, in-process moto, a client of the caller's, and through prefixes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from storage_backend.backends.s3 import S3Storage
from storage_backend.testing import ConformanceSuite, Subject
from storage_backend.wrappers.prefixed import PrefixedStorage
from tests.s3_servers import BucketPlace

LACKS = {"modified": "listings show when an object was stored; the source's time is in its metadata only"}
LITERAL = {"pickle": "it was given a secret as itself, which does not go into a pickle"}


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


def by_reference(place: BucketPlace, monkeypatch: pytest.MonkeyPatch, prefix: str = "") -> S3Storage:
    """With a secret that a pickle may refer to."""
    monkeypatch.setenv("SB_TEST_ACCESS_KEY", place.access_key)
    monkeypatch.setenv("SB_TEST_SECRET_KEY", place.secret_key)
    return S3Storage(
        place.bucket,
        prefix,
        endpoint_url=place.url,
        region=place.region,
        access_key="env:SB_TEST_ACCESS_KEY",
        secret_key="env:SB_TEST_SECRET_KEY",
    )


class TestMoto(ConformanceSuite):
    @pytest.fixture
    def subject(self, moto_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Subject:
        return Subject(make=lambda: by_reference(moto_bucket, monkeypatch), lacks=LACKS)


class TestMotoThroughPrefix(ConformanceSuite):
    @pytest.fixture
    def subject(self, moto_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Subject:
        return Subject(
            make=lambda: PrefixedStorage(by_reference(moto_bucket, monkeypatch, "/pre//fix/"), "some/where"),
            lacks=LACKS,
        )


class TestRclone(ConformanceSuite):
    @pytest.fixture
    def subject(self, rclone_bucket: BucketPlace, monkeypatch: pytest.MonkeyPatch) -> Subject:
        return Subject(make=lambda: by_reference(rclone_bucket, monkeypatch), lacks=LACKS)


class TestMock(ConformanceSuite):
    """In-process moto, by the wire's own requests."""

    @pytest.fixture
    def subject(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
        import boto3
        from moto import mock_aws

        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
        with mock_aws():
            boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="bucket")
            yield Subject(
                make=lambda: S3Storage("bucket", region="us-east-1"),
                lacks=LACKS | {"shared": "moto's objects live in one process"},
            )
