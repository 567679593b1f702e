"""The S3 server of the tests is a faithful S3, as boto3 sees it."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import http.client
import ipaddress
import ssl
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.s3_server_store import checksum

ODD_KEYS = [
    "a b+c%20&=?#.txt",
    "ü/ß/€/😀",
    "a//b/./../c",
    " lead",
    "trail ",
    "x\ny\tz",
    "\x01\x7f",
    "~*'()!;:@$,[]",
]
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@pytest.fixture(scope="module")
def session() -> Any:
    return boto3.session.Session()


@pytest.fixture
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        server.create_bucket("bucket")
        yield server


Connect = Callable[..., Any]


@pytest.fixture
def connect(server: S3Server, session: Any) -> Connect:
    def connect(**options: Any) -> Any:
        config = Config(
            retries={"max_attempts": 0, "mode": "standard"},
            signature_version="s3v4",  # presigned URLs are still of version 2 otherwise
            s3={"addressing_style": "path"},
            connect_timeout=10,
            read_timeout=30,
            proxies={},
        ).merge(options.pop("config", Config()))
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        settings = {"endpoint_url": server.url, "region_name": "us-east-1", **keys, **options}
        return session.client("s3", config=config, **settings)

    return connect


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


def refusal(call: Callable[..., object], **arguments: Any) -> tuple[str, int]:
    """The code and status of the error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def raw(
    server: S3Server,
    method: str,
    target: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    sign: bool = True,
) -> tuple[int, dict[str, str], bytes]:
    """One request as it is, signed over *headers*; status, headers in lower case and body."""
    request = AWSRequest(method, server.url + target, data=body, headers=dict(headers or {}))
    if sign:
        declared = (headers or {}).get("x-amz-content-sha256")
        signer = S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1")
        if declared is not None:
            signer.payload = lambda _: declared  # the way to lie about the body
        signer.add_auth(request)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, target, body=body or None, headers=dict(request.headers))
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def code_of(document: bytes) -> str | None:
    return ET.fromstring(document).findtext("Code")


class TestBuckets:
    def test_created_bucket_is_found_and_listed(self, client: Any) -> None:
        client.create_bucket(Bucket="other")
        assert client.head_bucket(Bucket="other")["BucketRegion"] == "us-east-1"
        assert [each["Name"] for each in client.list_buckets()["Buckets"]] == ["bucket", "other"]
        client.delete_bucket(Bucket="other")
        assert refusal(client.head_bucket, Bucket="other") == ("404", 404)

    def test_bucket_with_objects_is_not_deleted(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"")
        assert refusal(client.delete_bucket, Bucket="bucket") == ("BucketNotEmpty", 409)

    def test_creating_again_is_refused_outside_us_east_1(self, server: S3Server, client: Any) -> None:
        client.create_bucket(Bucket="bucket")
        where = {"LocationConstraint": "eu-west-1"}
        client.create_bucket(Bucket="far", CreateBucketConfiguration=where)
        again = {"Bucket": "far", "CreateBucketConfiguration": where}
        assert refusal(client.create_bucket, **again) == ("BucketAlreadyOwnedByYou", 409)

    def test_missing_bucket_is_told_from_missing_key_except_by_head(self, client: Any) -> None:
        assert refusal(client.get_object, Bucket="none", Key="key") == ("NoSuchBucket", 404)
        assert refusal(client.get_object, Bucket="bucket", Key="key") == ("NoSuchKey", 404)
        assert refusal(client.head_object, Bucket="none", Key="key") == ("404", 404)
        assert refusal(client.head_object, Bucket="bucket", Key="key") == ("404", 404)
        assert refusal(client.put_object, Bucket="none", Key="key", Body=b"") == ("NoSuchBucket", 404)
        assert refusal(client.list_objects_v2, Bucket="none") == ("NoSuchBucket", 404)

    def test_unknown_subresource_is_not_taken_for_a_plain_request(
        self, server: S3Server, client: Any
    ) -> None:
        server.put("bucket", "key", b"old")
        assert refusal(client.get_object_acl, Bucket="bucket", Key="key") == ("NotImplemented", 501)
        assert refusal(client.get_object, Bucket="bucket", Key="key", PartNumber=1) == ("NotImplemented", 501)
        tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
        refused = refusal(client.put_object_tagging, Bucket="bucket", Key="key", Tagging=tags)
        assert refused == ("NotImplemented", 501)
        assert server.objects("bucket") == {"key": b"old"}

    def test_bucket_may_be_named_by_the_host(self, server: S3Server) -> None:
        server.put("bucket", "key", b"content")
        status, _, body = raw(server, "GET", "/key", headers={"Host": f"bucket.localhost:{server.port}"})
        assert (status, body) == (200, b"content")


class TestObjects:
    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_any_key_keeps_its_name_and_bytes(self, server: S3Server, client: Any, key: str) -> None:
        client.put_object(Bucket="bucket", Key=key, Body=b"content")
        assert server.objects("bucket") == {key: b"content"}
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == b"content"
        assert [each["Key"] for each in client.list_objects_v2(Bucket="bucket")["Contents"]] == [key]

    def test_key_of_more_than_1024_bytes_is_refused(self, client: Any) -> None:
        client.put_object(Bucket="bucket", Key="k" * 1024, Body=b"")
        assert refusal(client.put_object, Bucket="bucket", Key="k" * 1025, Body=b"") == (
            "KeyTooLongError",
            400,
        )

    def test_metadata_and_headers_are_kept(self, server: S3Server, client: Any) -> None:
        client.put_object(
            Bucket="bucket",
            Key="key",
            Body=b"content",
            ContentType="text/plain",
            CacheControl="no-store",
            ContentEncoding="gzip",
            StorageClass="STANDARD_IA",
            Metadata={"one": "1", "two": "b c"},
        )
        found = client.head_object(Bucket="bucket", Key="key")
        assert found["ContentType"] == "text/plain"
        assert found["CacheControl"] == "no-store"
        assert found["ContentEncoding"] == "gzip"
        assert found["StorageClass"] == "STANDARD_IA"
        assert found["Metadata"] == {"one": "1", "two": "b c"}
        assert found["ETag"] == f'"{hashlib.md5(b"content").hexdigest()}"'
        assert found["ContentLength"] == 7
        assert client.list_objects_v2(Bucket="bucket")["Contents"][0]["StorageClass"] == "STANDARD_IA"

    def test_default_content_type_is_that_of_s3(self, client: Any) -> None:
        client.put_object(Bucket="bucket", Key="key", Body=b"")
        assert client.head_object(Bucket="bucket", Key="key")["ContentType"] == "binary/octet-stream"

    @pytest.mark.parametrize(
        ("asked", "expected", "shown"),
        [
            ("bytes=0-0", b"0", "bytes 0-0/10"),
            ("bytes=3-5", b"345", "bytes 3-5/10"),
            ("bytes=7-", b"789", "bytes 7-9/10"),
            ("bytes=8-99", b"89", "bytes 8-9/10"),
            ("bytes=-3", b"789", "bytes 7-9/10"),
            ("bytes=-99", b"0123456789", "bytes 0-9/10"),
        ],
    )
    def test_range_gives_its_bytes(
        self, server: S3Server, client: Any, asked: str, expected: bytes, shown: str
    ) -> None:
        server.put("bucket", "key", b"0123456789")
        answer = client.get_object(Bucket="bucket", Key="key", Range=asked)
        assert answer["Body"].read() == expected
        assert answer["ContentRange"] == shown
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert client.head_object(Bucket="bucket", Key="key", Range=asked)["ContentLength"] == len(expected)

    @pytest.mark.parametrize("asked", ["bytes=5-3", "bytes=a-b", "bytes=-", "bytes=0-1,3-4", "lines=0-1"])
    def test_range_that_is_none_is_ignored(self, server: S3Server, client: Any, asked: str) -> None:
        server.put("bucket", "key", b"0123456789")
        answer = client.get_object(Bucket="bucket", Key="key", Range=asked)
        assert answer["Body"].read() == b"0123456789"
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200

    @pytest.mark.parametrize(
        ("size", "asked"), [(10, "bytes=10-"), (10, "bytes=-0"), (0, "bytes=0-0"), (0, "bytes=-1")]
    )
    def test_range_past_the_end_is_416_with_the_size(self, server: S3Server, size: int, asked: str) -> None:
        server.put("bucket", "key", b"x" * size)
        status, headers, body = raw(server, "GET", "/bucket/key", headers={"Range": asked})
        assert (status, headers["content-range"], code_of(body)) == (416, f"bytes */{size}", "InvalidRange")

    def test_conditions_of_reading(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"content")
        etag = client.head_object(Bucket="bucket", Key="key")["ETag"]
        reading = {"Bucket": "bucket", "Key": "key"}
        hour = dt.timedelta(hours=1)
        now = dt.datetime.now(dt.UTC)
        assert client.get_object(**reading, IfMatch=etag)["Body"].read() == b"content"
        assert refusal(client.get_object, **reading, IfMatch='"other"') == ("PreconditionFailed", 412)
        assert refusal(client.get_object, **reading, IfNoneMatch=etag) == ("304", 304)
        assert client.get_object(**reading, IfNoneMatch='"other"')["Body"].read() == b"content"
        assert refusal(client.get_object, **reading, IfModifiedSince=now) == ("304", 304)
        assert refusal(client.get_object, **reading, IfUnmodifiedSince=now - hour) == (
            "PreconditionFailed",
            412,
        )
        assert refusal(client.head_object, **reading, IfMatch='"other"') == ("412", 412)

    def test_refused_head_has_no_body(self, server: S3Server) -> None:
        status, _, body = raw(server, "HEAD", "/bucket/none")
        assert (status, body) == (404, b"")

    def test_create_only_write_keeps_what_is_there(self, server: S3Server, client: Any) -> None:
        writing = {"Bucket": "bucket", "Key": "key", "IfNoneMatch": "*"}
        client.put_object(**writing, Body=b"first")
        assert refusal(client.put_object, **writing, Body=b"second") == ("PreconditionFailed", 412)
        assert server.objects("bucket") == {"key": b"first"}
        writing["IfNoneMatch"] = '"etag"'
        assert refusal(client.put_object, **writing, Body=b"") == ("NotImplemented", 501)

    def test_replacing_write_wants_the_etag(self, server: S3Server, client: Any) -> None:
        writing = {"Bucket": "bucket", "Key": "key"}
        assert refusal(client.put_object, **writing, Body=b"", IfMatch='"etag"') == ("NoSuchKey", 404)
        etag = client.put_object(**writing, Body=b"first")["ETag"]
        assert refusal(client.put_object, **writing, Body=b"", IfMatch='"etag"') == (
            "PreconditionFailed",
            412,
        )
        client.put_object(**writing, Body=b"second", IfMatch=etag)
        assert server.objects("bucket") == {"key": b"second"}

    def test_deleting_what_is_absent_succeeds(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"content")
        assert refusal(client.delete_object, Bucket="bucket", Key="key", IfMatch='"x"') == (
            "PreconditionFailed",
            412,
        )
        for _ in range(2):
            answer = client.delete_object(Bucket="bucket", Key="key")
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
        assert server.objects("bucket") == {}

    def test_versions_are_read_and_deleted_by_id(self, server: S3Server, client: Any) -> None:
        server.create_bucket("kept", versioning=True)
        old = client.put_object(Bucket="kept", Key="key", Body=b"old")["VersionId"]
        client.put_object(Bucket="kept", Key="key", Body=b"new")
        marker = client.delete_object(Bucket="kept", Key="key")
        assert marker["DeleteMarker"] is True
        assert refusal(client.get_object, Bucket="kept", Key="key") == ("NoSuchKey", 404)
        assert server.objects("kept") == {}
        assert client.get_object(Bucket="kept", Key="key", VersionId=old)["Body"].read() == b"old"
        of_marker = {"Bucket": "kept", "Key": "key", "VersionId": marker["VersionId"]}
        assert refusal(client.get_object, **of_marker) == ("MethodNotAllowed", 405)
        client.delete_object(**of_marker)
        assert client.get_object(Bucket="kept", Key="key")["Body"].read() == b"new"
        assert refusal(client.get_object, Bucket="kept", Key="key", VersionId="x") == ("NoSuchVersion", 404)


class TestDeletingMany:
    def test_absent_keys_are_reported_as_deleted(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "a", b"")
        server.put("bucket", "b", b"")
        answer = client.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "a"}, {"Key": "none"}]})
        assert [each["Key"] for each in answer["Deleted"]] == ["a", "none"]
        assert list(server.objects("bucket")) == ["b"]

    def test_quiet_reports_errors_only(self, server: S3Server, client: Any) -> None:
        for key in ("a", "locked/b"):
            server.put("bucket", key, b"")
        server.deny({"s3:DeleteObject"}, "locked/*")
        wanted = {"Objects": [{"Key": "a"}, {"Key": "locked/b"}], "Quiet": True}
        answer = client.delete_objects(Bucket="bucket", Delete=wanted)
        assert "Deleted" not in answer
        assert [(each["Key"], each["Code"]) for each in answer["Errors"]] == [("locked/b", "AccessDenied")]
        assert list(server.objects("bucket")) == ["locked/b"]

    @pytest.mark.parametrize("count", [0, 1001])
    def test_number_of_keys_is_limited(self, server: S3Server, client: Any, count: int) -> None:
        keys = [{"Key": f"{number}"} for number in range(count)]
        assert refusal(client.delete_objects, Bucket="bucket", Delete={"Objects": keys}) == (
            "MalformedXML",
            400,
        )

    def test_a_digest_is_required(self, server: S3Server) -> None:
        server.put("bucket", "a", b"")
        body = b"<Delete><Object><Key>a</Key></Object></Delete>"
        assert code_of(raw(server, "POST", "/bucket?delete", body)[2]) == "InvalidRequest"
        digest = base64.b64encode(hashlib.md5(body).digest()).decode()
        assert raw(server, "POST", "/bucket?delete", body, {"Content-MD5": digest})[0] == 200
        assert server.objects("bucket") == {}


class TestCopies:
    def test_copy_takes_bytes_and_metadata(self, server: S3Server, client: Any) -> None:
        server.create_bucket("other")
        client.put_object(
            Bucket="bucket",
            Key="ü a+b",
            Body=b"content",
            Metadata={"a": "b"},
            ContentType="text/x",
            StorageClass="GLACIER_IR",
        )
        client.copy_object(Bucket="other", Key="copy", CopySource={"Bucket": "bucket", "Key": "ü a+b"})
        found = client.head_object(Bucket="other", Key="copy")
        assert server.objects("other") == {"copy": b"content"}
        assert (found["Metadata"], found["ContentType"]) == ({"a": "b"}, "text/x")
        assert "StorageClass" not in found

    def test_replaced_metadata_is_all_there_is(self, server: S3Server, client: Any) -> None:
        client.put_object(
            Bucket="bucket", Key="key", Body=b"content", Metadata={"a": "b"}, ContentType="text/x"
        )
        onto_itself = {"Bucket": "bucket", "Key": "key", "CopySource": "bucket/key"}
        assert refusal(client.copy_object, **onto_itself) == ("InvalidRequest", 400)
        client.copy_object(**onto_itself, MetadataDirective="REPLACE", Metadata={"c": "d"})
        found = client.head_object(Bucket="bucket", Key="key")
        assert (found["Metadata"], found["ContentType"]) == ({"c": "d"}, "binary/octet-stream")

    def test_conditions_on_the_source(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"content")
        etag = client.head_object(Bucket="bucket", Key="key")["ETag"]
        copying = {"Bucket": "bucket", "Key": "copy", "CopySource": "bucket/key"}
        assert refusal(client.copy_object, **copying, CopySourceIfMatch='"x"') == ("PreconditionFailed", 412)
        assert refusal(client.copy_object, **copying, CopySourceIfNoneMatch=etag) == (
            "PreconditionFailed",
            412,
        )
        assert "copy" not in server.objects("bucket")
        client.copy_object(**copying, CopySourceIfMatch=etag)
        assert refusal(client.copy_object, **copying, IfNoneMatch="*") == ("PreconditionFailed", 412)
        copying["CopySource"] = "bucket/none"
        assert refusal(client.copy_object, **copying) == ("NoSuchKey", 404)

    def test_source_past_the_limit_needs_parts(self, server: S3Server, client: Any) -> None:
        server.settings.copy_limit = 10
        server.settings.minimum_part = 1
        server.put("bucket", "key", b"0123456789a")
        copying = {"Bucket": "bucket", "Key": "copy", "CopySource": "bucket/key"}
        assert refusal(client.copy_object, **copying) == ("InvalidRequest", 400)
        upload = client.create_multipart_upload(Bucket="bucket", Key="copy")["UploadId"]
        part = {**copying, "UploadId": upload, "PartNumber": 1}
        assert refusal(client.upload_part_copy, **part) == ("InvalidRequest", 400)
        assert refusal(client.upload_part_copy, **part, CopySourceRange="bytes=5-11") == (
            "InvalidArgument",
            400,
        )
        assert refusal(client.upload_part_copy, **part, CopySourceRange="bytes=5-") == (
            "InvalidArgument",
            400,
        )
        etags = []
        for number, asked in enumerate(("bytes=0-9", "bytes=10-10"), 1):
            part["PartNumber"] = number
            copied = client.upload_part_copy(**part, CopySourceRange=asked)
            etags.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
        client.complete_multipart_upload(
            Bucket="bucket", Key="copy", UploadId=upload, MultipartUpload={"Parts": etags}
        )
        assert server.objects("bucket")["copy"] == b"0123456789a"


class TestMultipart:
    PLAIN = Config(request_checksum_calculation="when_required")

    @pytest.fixture
    def client(self, connect: Connect) -> Any:
        return connect(config=self.PLAIN)

    @staticmethod
    def begun(client: Any, *bodies: bytes, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """An upload of *bodies*: what names it, and its parts as a completion wants them."""
        upload = {"Bucket": "bucket", "Key": "key"}
        upload["UploadId"] = client.create_multipart_upload(**upload, **options)["UploadId"]
        parts = []
        for number, body in enumerate(bodies, 1):
            answer = client.upload_part(**upload, PartNumber=number, Body=body)
            sums = {name: value for name, value in answer.items() if name.startswith("Checksum")}
            parts.append({"PartNumber": number, "ETag": answer["ETag"], **sums})
        return upload, parts

    def test_object_appears_with_completion_only(self, server: S3Server, client: Any) -> None:
        first, second = b"a" * (5 << 20), b"b"
        upload, parts = self.begun(client, first, second, ContentType="text/x", Metadata={"a": "b"})
        assert server.objects("bucket") == {}
        assert list(server.uploads("bucket")) == [upload["UploadId"]]
        answer = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        digests = hashlib.md5(first).digest() + hashlib.md5(second).digest()
        assert answer["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-2"'
        assert server.objects("bucket")["key"] == first + second
        assert server.uploads("bucket") == {}
        found = client.head_object(Bucket="bucket", Key="key")
        assert (found["ContentType"], found["Metadata"]) == ("text/x", {"a": "b"})

    def test_part_sent_again_replaces_itself(self, server: S3Server, client: Any) -> None:
        upload, _ = self.begun(client, b"first")
        etag = client.upload_part(**upload, PartNumber=1, Body=b"again")["ETag"]
        client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]}
        )
        assert server.objects("bucket") == {"key": b"again"}

    def test_wrong_completions_are_refused_and_leave_the_upload(self, server: S3Server, client: Any) -> None:
        upload, parts = self.begun(client, b"small", b"last")

        def refused(*chosen: dict[str, Any]) -> tuple[str, int]:
            return refusal(
                client.complete_multipart_upload, **upload, MultipartUpload={"Parts": list(chosen)}
            )

        assert refused(*parts) == ("EntityTooSmall", 400)
        server.settings.minimum_part = 1
        assert refused(*reversed(parts)) == ("InvalidPartOrder", 400)
        assert refused(parts[0], parts[0]) == ("InvalidPartOrder", 400)
        assert refused({"PartNumber": 1, "ETag": parts[1]["ETag"]}) == ("InvalidPart", 400)
        assert refused({"PartNumber": 3, "ETag": parts[1]["ETag"]}) == ("InvalidPart", 400)
        assert refused() == ("MalformedXML", 400)
        assert server.objects("bucket") == {}
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        assert server.objects("bucket") == {"key": b"smalllast"}

    def test_completion_has_conditions(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"old")
        upload, parts = self.begun(client, b"new")
        done = {**upload, "MultipartUpload": {"Parts": parts}}
        assert refusal(client.complete_multipart_upload, **done, IfNoneMatch="*") == (
            "PreconditionFailed",
            412,
        )
        assert refusal(client.complete_multipart_upload, **done, IfMatch='"x"') == ("PreconditionFailed", 412)
        assert server.objects("bucket") == {"key": b"old"}
        etag = client.head_object(Bucket="bucket", Key="key")["ETag"]
        client.complete_multipart_upload(**done, IfMatch=etag)
        assert server.objects("bucket") == {"key": b"new"}

    def test_repeated_completion_is_answered_alike_unless_told_otherwise(
        self, server: S3Server, client: Any
    ) -> None:
        upload, parts = self.begun(client, b"content")
        done = {**upload, "MultipartUpload": {"Parts": parts}}
        first = client.complete_multipart_upload(**done)
        server.put("bucket", "key", b"newer")
        assert client.complete_multipart_upload(**done)["ETag"] == first["ETag"]
        assert server.objects("bucket") == {"key": b"newer"}
        server.settings.repeatable_complete = False
        assert refusal(client.complete_multipart_upload, **done) == ("NoSuchUpload", 404)

    def test_aborted_upload_is_gone(self, server: S3Server, client: Any) -> None:
        upload, _ = self.begun(client, b"content")
        client.abort_multipart_upload(**upload)
        assert server.uploads("bucket") == {}
        assert refusal(client.abort_multipart_upload, **upload) == ("NoSuchUpload", 404)
        assert refusal(client.upload_part, **upload, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)
        assert refusal(client.list_parts, **upload) == ("NoSuchUpload", 404)

    @pytest.mark.parametrize("number", [0, 10_001])
    def test_part_numbers_are_limited(self, client: Any, number: int) -> None:
        upload, _ = self.begun(client)
        assert refusal(client.upload_part, **upload, PartNumber=number, Body=b"") == ("InvalidArgument", 400)

    def test_parts_and_uploads_are_listed_in_pages(self, server: S3Server, client: Any) -> None:
        server.settings.page_size = 2
        upload, parts = self.begun(client, *[b"%d" % number for number in range(5)])
        pages = client.get_paginator("list_parts").paginate(**upload)
        listed = [
            (part["PartNumber"], part["ETag"], part["Size"]) for page in pages for part in page["Parts"]
        ]
        assert listed == [(part["PartNumber"], part["ETag"], 1) for part in parts]
        client.abort_multipart_upload(**upload)
        keys = ["a", "b", "b", "p/a b", "p/ü"]
        ids = {client.create_multipart_upload(Bucket="bucket", Key=key)["UploadId"]: key for key in keys}
        for prefix in ("", "p/"):
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket="bucket", Prefix=prefix)
            found = [(each["Key"], each["UploadId"]) for page in pages for each in page.get("Uploads", ())]
            assert sorted(found) == sorted((key, each) for each, key in ids.items() if key.startswith(prefix))
            assert [key for key, _ in found] == [key for key in keys if key.startswith(prefix)]

    def test_checksum_of_an_upload_is_of_its_parts_or_of_the_whole(self, connect: Connect) -> None:
        client = connect()
        for kind, expected in (
            ("COMPOSITE", checksum("crc32", zlib.crc32(b"content").to_bytes(4, "big")) + "-1"),
            ("FULL_OBJECT", checksum("crc32", b"content")),
        ):
            upload, parts = self.begun(client, b"content", ChecksumAlgorithm="CRC32", ChecksumType=kind)
            answer = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
            assert (answer["ChecksumCRC32"], answer["ChecksumType"]) == (expected, kind)
            found = client.head_object(Bucket="bucket", Key="key", ChecksumMode="ENABLED")
            assert (found["ChecksumCRC32"], found["ChecksumType"]) == (expected, kind)

    def test_checksums_of_parts_are_those_the_upload_was_made_for(
        self, server: S3Server, connect: Connect
    ) -> None:
        client = connect(config=self.PLAIN)
        upload, _ = self.begun(client)
        part = {**upload, "PartNumber": 1, "Body": b"content"}
        server.settings.unannounced_checksums = False
        assert refusal(client.upload_part, **part, ChecksumAlgorithm="CRC32") == ("InvalidRequest", 400)
        server.settings.unannounced_checksums = True
        client.upload_part(**part, ChecksumAlgorithm="CRC32")
        assert refusal(client.upload_part, **part, ChecksumCRC32="AAAAAA==") == ("BadDigest", 400)
        upload, parts = self.begun(connect(), b"content", ChecksumAlgorithm="CRC32")
        part["UploadId"] = upload["UploadId"]
        assert refusal(client.upload_part, **part) == ("InvalidRequest", 400)
        bare = {"Parts": [{"PartNumber": 1, "ETag": parts[0]["ETag"]}]}
        assert refusal(client.complete_multipart_upload, **upload, MultipartUpload=bare) == (
            "InvalidRequest",
            400,
        )

    def test_completion_with_another_parts_checksum_is_refused(
        self, server: S3Server, connect: Connect
    ) -> None:
        client = connect()
        upload, parts = self.begun(client, b"content", ChecksumAlgorithm="CRC32")
        wrong = {"Parts": [{**parts[0], "ChecksumCRC32": checksum("crc32", b"other")}]}
        assert refusal(client.complete_multipart_upload, **upload, MultipartUpload=wrong) == (
            "InvalidPart",
            400,
        )
        assert server.objects("bucket") == {}

    def test_completion_with_another_objects_checksum_is_refused(
        self, server: S3Server, connect: Connect
    ) -> None:
        client = connect()
        upload, parts = self.begun(client, b"content", ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
        done = {**upload, "MultipartUpload": {"Parts": parts}, "ChecksumType": "FULL_OBJECT"}
        wrong = checksum("crc32", b"other")
        assert refusal(client.complete_multipart_upload, **done, ChecksumCRC32=wrong) == ("BadDigest", 400)
        assert server.objects("bucket") == {}
        client.complete_multipart_upload(**done, ChecksumCRC32=checksum("crc32", b"content"))
        assert server.objects("bucket") == {"key": b"content"}


class TestListing:
    KEYS = ("a", "a/b", "a/c/d", "a/c/e", "a0", "b/", "b/x y", "z", "é", "\uffff", "\U0001f600")

    @pytest.fixture(autouse=True)
    def filled(self, server: S3Server) -> None:
        for key in self.KEYS:
            server.put("bucket", key, b"x")

    @staticmethod
    def pages(client: Any, **options: Any) -> tuple[list[str], list[str]]:
        keys, prefixes = [], []
        for page in client.get_paginator("list_objects_v2").paginate(Bucket="bucket", **options):
            keys += [each["Key"] for each in page.get("Contents", ())]
            prefixes += [each["Prefix"] for each in page.get("CommonPrefixes", ())]
        return keys, prefixes

    @pytest.mark.parametrize("size", [1, 2, 3, 1000])
    def test_pages_are_in_the_order_of_utf_8_and_complete(
        self, server: S3Server, client: Any, size: int
    ) -> None:
        server.settings.page_size = size
        ordered = sorted(self.KEYS, key=str.encode)
        assert self.pages(client) == (ordered, [])
        assert self.pages(client, Prefix="a/") == (["a/b", "a/c/d", "a/c/e"], [])
        assert self.pages(client, Prefix="none") == ([], [])
        top = ["a", "a0", "z", "é", "\uffff", "\U0001f600"]
        assert self.pages(client, Delimiter="/") == (top, ["a/", "b/"])
        assert self.pages(client, Delimiter="/", Prefix="a/") == (["a/b"], ["a/c/"])
        assert self.pages(client, StartAfter="a/c/d") == (ordered[ordered.index("a/c/d") + 1 :], [])
        assert self.pages(client, EncodingType="url", Prefix="b/") == (["b/", "b/x+y"], [])

    def test_page_says_how_much_it_holds(self, client: Any) -> None:
        page = client.list_objects_v2(Bucket="bucket", MaxKeys=3, Delimiter="/")
        assert (page["KeyCount"], page["MaxKeys"], page["IsTruncated"]) == (3, 3, True)
        assert client.list_objects_v2(Bucket="bucket", MaxKeys=0)["IsTruncated"] is False

    def test_wrong_arguments_are_refused(self, client: Any) -> None:
        wrong = {"Bucket": "bucket", "ContinuationToken": "x"}
        assert refusal(client.list_objects_v2, **wrong) == ("InvalidArgument", 400)
        assert refusal(client.list_objects_v2, Bucket="bucket", MaxKeys=-1) == ("InvalidArgument", 400)


class TestIntegrity:
    BODY = b"content"

    @staticmethod
    def trailing(body: bytes, trailer: str, *, signed: bool = False) -> bytes:
        mark = ";chunk-signature=" + "0" * 64 if signed else ""
        chunks = "".join(f"{len(part):x}{mark}\r\n{part.decode()}\r\n" for part in (body[:3], body[3:]))
        return f"{chunks}0{mark}\r\n{trailer}\r\n\r\n".encode()

    @pytest.mark.parametrize("name", ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"])
    def test_body_that_is_not_its_checksum_is_refused(self, server: S3Server, name: str) -> None:
        header = f"x-amz-checksum-{name}"
        answer = raw(server, "PUT", "/bucket/key", self.BODY, {header: checksum(name, b"other")})
        assert (answer[0], code_of(answer[2])) == (400, "BadDigest")
        assert server.objects("bucket") == {}
        status, headers, _ = raw(server, "PUT", "/bucket/key", self.BODY, {header: checksum(name, self.BODY)})
        assert (status, headers[header]) == (200, checksum(name, self.BODY))

    def test_crcs_are_those_of_the_catalogue(self) -> None:
        """The check values of "Catalogue of parametrised CRC algorithms"."""
        check = b"123456789"
        assert base64.b64decode(checksum("crc32c", check)).hex() == "e3069283"
        assert base64.b64decode(checksum("crc64nvme", check)).hex() == "ae8b14860a799888"

    def test_md5_is_checked(self, server: S3Server) -> None:
        wrong = base64.b64encode(hashlib.md5(b"other").digest()).decode()
        assert code_of(raw(server, "PUT", "/bucket/key", self.BODY, {"Content-MD5": wrong})[2]) == "BadDigest"
        assert (
            code_of(raw(server, "PUT", "/bucket/key", self.BODY, {"Content-MD5": "x"})[2]) == "InvalidDigest"
        )
        assert server.objects("bucket") == {}

    def test_signed_digest_is_checked(self, server: S3Server) -> None:
        wrong = {"x-amz-content-sha256": hashlib.sha256(b"other").hexdigest()}
        status, _, body = raw(server, "PUT", "/bucket/key", self.BODY, wrong)
        assert (status, code_of(body)) == (400, "XAmzContentSHA256Mismatch")
        assert server.objects("bucket") == {}
        assert (
            raw(server, "PUT", "/bucket/key", self.BODY, {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})[0]
            == 200
        )

    @pytest.mark.parametrize(
        "kind", ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"]
    )
    def test_trailing_checksum_is_checked(self, server: S3Server, kind: str) -> None:
        headers = {
            "x-amz-content-sha256": kind,
            "x-amz-decoded-content-length": "7",
            "x-amz-trailer": "x-amz-checksum-crc32",
            "Content-Encoding": "aws-chunked",
        }
        signed = "HMAC" in kind

        def put(trailer: str, **changed: str) -> tuple[int, dict[str, str], bytes]:
            sent = {**headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
            return raw(server, "PUT", "/bucket/key", self.trailing(self.BODY, trailer, signed=signed), sent)

        right = f"x-amz-checksum-crc32:{checksum('crc32', self.BODY)}"
        assert code_of(put(f"x-amz-checksum-crc32:{checksum('crc32', b'other')}")[2]) == "BadDigest"
        assert code_of(put("")[2]) == "MalformedTrailerError"
        assert code_of(put(right, x_amz_decoded_content_length="8")[2]) == "IncompleteBody"
        assert server.objects("bucket") == {}
        status, answered, _ = put(right)
        assert (status, answered["x-amz-checksum-crc32"]) == (200, checksum("crc32", self.BODY))
        assert server.objects("bucket") == {"key": self.BODY}
        assert "content-encoding" not in server.stored("bucket", "key").headers

    def test_announced_checksum_must_come(self, server: S3Server) -> None:
        announced = {"x-amz-sdk-checksum-algorithm": "CRC32"}
        assert code_of(raw(server, "PUT", "/bucket/key", self.BODY, announced)[2]) == "InvalidRequest"

    def test_stored_checksum_is_told_on_whole_reads_that_ask(self, client: Any) -> None:
        client.put_object(Bucket="bucket", Key="key", Body=self.BODY, ChecksumAlgorithm="SHA256")
        found = client.get_object(Bucket="bucket", Key="key", ChecksumMode="ENABLED")
        assert found["ChecksumSHA256"] == checksum("sha256", self.BODY)
        assert found["ChecksumType"] == "FULL_OBJECT"
        assert found["Body"].read() == self.BODY
        part = client.get_object(Bucket="bucket", Key="key", ChecksumMode="ENABLED", Range="bytes=0-1")
        assert "ChecksumSHA256" not in part

    def test_stored_checksum_is_not_told_unasked(self, server: S3Server) -> None:
        sums = {"x-amz-checksum-crc32": checksum("crc32", self.BODY)}
        raw(server, "PUT", "/bucket/key", self.BODY, sums)
        assert "x-amz-checksum-crc32" not in raw(server, "GET", "/bucket/key")[1]
        assert (
            "x-amz-checksum-crc32"
            in raw(server, "GET", "/bucket/key", headers={"x-amz-checksum-mode": "ENABLED"})[1]
        )

    def test_body_without_a_length_is_refused(self, server: S3Server) -> None:
        with S3Server(anonymous=True) as other:
            other.create_bucket("bucket")
            connection = http.client.HTTPConnection("127.0.0.1", other.port, timeout=30)
            connection.putrequest("PUT", "/bucket/key")
            connection.endheaders()
            answer = connection.getresponse()
            assert (answer.status, code_of(answer.read())) == (411, "MissingContentLength")
            connection.close()


class TestAuthentication:
    def test_wrong_secret_and_unknown_key_are_refused(self, server: S3Server, connect: Connect) -> None:
        wrong = connect(aws_secret_access_key="wrong")
        assert refusal(wrong.list_objects_v2, Bucket="bucket") == ("SignatureDoesNotMatch", 403)
        unknown = connect(aws_access_key_id="AKIDUNKNOWN")
        assert refusal(unknown.list_objects_v2, Bucket="bucket") == ("InvalidAccessKeyId", 403)
        assert server.actions == []
        assert server.rejected == ["SignatureDoesNotMatch", "InvalidAccessKeyId"]

    def test_nobody_is_let_in_without_a_signature_unless_told(self, server: S3Server) -> None:
        server.put("bucket", "key", b"content")
        assert code_of(raw(server, "GET", "/bucket/key", sign=False)[2]) == "AccessDenied"
        server.anonymous = True
        assert raw(server, "GET", "/bucket/key", sign=False)[2] == b"content"

    @pytest.mark.parametrize("changed", ["method", "path", "query", "header"])
    def test_signature_covers_all_of_the_request(self, server: S3Server, changed: str) -> None:
        request = AWSRequest("GET", f"{server.url}/bucket/key?a=1", headers={"x-amz-meta-a": "b"})
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(request)
        headers = dict(request.headers)
        method, target = "GET", "/bucket/key?a=1"
        if changed == "method":
            method = "DELETE"
        elif changed == "path":
            target = "/bucket/kex?a=1"
        elif changed == "query":
            target = "/bucket/key?a=2"
        else:
            headers["x-amz-meta-a"] = "c"
        assert code_of(raw(server, method, target, headers=headers, sign=False)[2]) == "SignatureDoesNotMatch"

    def test_unsigned_amz_header_is_refused(self, server: S3Server) -> None:
        request = AWSRequest("GET", f"{server.url}/bucket/key")
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(request)
        headers = {**dict(request.headers), "x-amz-checksum-mode": "ENABLED"}
        assert code_of(raw(server, "GET", "/bucket/key", headers=headers, sign=False)[2]) == "AccessDenied"

    def test_session_token_is_required_checked_and_expires(self, server: S3Server, connect: Connect) -> None:
        server.credentials.secrets["ASIATEMPORARY"] = "secret"
        server.credentials.tokens["ASIATEMPORARY"] = "token+/="
        keys = {"aws_access_key_id": "ASIATEMPORARY", "aws_secret_access_key": "secret"}
        right = connect(**keys, aws_session_token="token+/=")
        right.list_objects_v2(Bucket="bucket")
        bare = connect(**keys)
        assert refusal(bare.list_objects_v2, Bucket="bucket") == ("InvalidAccessKeyId", 403)
        wrong = connect(**keys, aws_session_token="other")
        assert refusal(wrong.list_objects_v2, Bucket="bucket") == ("InvalidToken", 400)
        names = {"Bucket": "bucket", "Key": "key"}
        url = right.generate_presigned_url("put_object", Params=names).removeprefix(server.url)
        assert raw(server, "PUT", url, b"content", sign=False)[0] == 200
        server.expired.add("token+/=")
        assert code_of(raw(server, "PUT", url, b"content", sign=False)[2]) == "ExpiredToken"
        assert refusal(right.list_objects_v2, Bucket="bucket") == ("ExpiredToken", 400)

    @pytest.mark.parametrize("shift", [-16 * 60, 16 * 60])
    def test_clock_off_by_more_than_a_quarter_of_an_hour_is_refused(
        self, server: S3Server, shift: int
    ) -> None:
        server.clock = lambda: time.time() + shift
        status, headers, body = raw(server, "GET", "/bucket?list-type=2")
        assert (status, code_of(body)) == (403, "RequestTimeTooSkewed")
        shown = dt.datetime.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=dt.UTC)
        assert abs(shown.timestamp() - server.clock()) < 60
        server.clock = lambda: time.time() + shift // 2
        assert raw(server, "GET", "/bucket?list-type=2")[0] == 200

    def test_wrong_region_is_named(self, server: S3Server) -> None:
        server.create_bucket("far", region="eu-west-1")
        status, headers, body = raw(server, "GET", "/far?list-type=2")
        assert (status, code_of(body)) == (400, "AuthorizationHeaderMalformed")
        assert ET.fromstring(body).findtext("Region") == "eu-west-1"
        server.wrong_region = "redirect"
        status, headers, body = raw(server, "HEAD", "/far")
        assert (status, headers["x-amz-bucket-region"], body) == (301, "eu-west-1", b"")
        assert code_of(raw(server, "GET", "/far?list-type=2")[2]) == "PermanentRedirect"

    def test_client_follows_the_redirect_to_the_region(self, server: S3Server, client: Any) -> None:
        server.create_bucket("far", region="eu-west-1")
        server.wrong_region = "redirect"
        client.put_object(Bucket="far", Key="key", Body=b"content")
        assert server.objects("far") == {"key": b"content"}

    def test_presigned_urls_read_and_write_until_they_expire(self, server: S3Server, client: Any) -> None:
        for key in ODD_KEYS:
            names = {"Bucket": "bucket", "Key": key}
            put = client.generate_presigned_url("put_object", Params=names, ExpiresIn=60)
            assert raw(server, "PUT", put.removeprefix(server.url), b"content", sign=False)[0] == 200
            get = client.generate_presigned_url("get_object", Params=names, ExpiresIn=60)
            assert raw(server, "GET", get.removeprefix(server.url), sign=False)[2] == b"content"
        assert (
            code_of(raw(server, "PUT", get.removeprefix(server.url), b"x", sign=False)[2])
            == "SignatureDoesNotMatch"
        )
        server.clock = lambda: time.time() + 120
        assert b"Request has expired" in raw(server, "GET", get.removeprefix(server.url), sign=False)[2]

    def test_presigned_url_of_more_than_a_week_is_refused(self, server: S3Server, client: Any) -> None:
        names = {"Bucket": "bucket", "Key": "key"}
        url = client.generate_presigned_url("get_object", Params=names, ExpiresIn=7 * 24 * 3600 + 1)
        answer = raw(server, "GET", url.removeprefix(server.url), sign=False)
        assert code_of(answer[2]) == "AuthorizationQueryParametersError"


class TestPermissions:
    def test_denied_action_is_refused_and_has_no_effect(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"old")
        server.deny({"s3:PutObject", "s3:GetObject"})
        assert refusal(client.put_object, Bucket="bucket", Key="key", Body=b"new") == ("AccessDenied", 403)
        assert refusal(client.get_object, Bucket="bucket", Key="key") == ("AccessDenied", 403)
        assert refusal(client.head_object, Bucket="bucket", Key="key") == ("403", 403)
        assert refusal(client.create_multipart_upload, Bucket="bucket", Key="key") == ("AccessDenied", 403)
        assert server.objects("bucket") == {"key": b"old"}
        assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == 1

    def test_only_what_is_allowed_is_done(self, server: S3Server, client: Any) -> None:
        server.put("bucket", "key", b"content")
        server.allow_only({"s3:PutObject"})
        client.put_object(Bucket="bucket", Key="other", Body=b"")
        copying = {"Bucket": "bucket", "Key": "copy", "CopySource": "bucket/key"}
        assert refusal(client.copy_object, **copying) == ("AccessDenied", 403)
        assert refusal(client.list_objects_v2, Bucket="bucket") == ("AccessDenied", 403)
        assert refusal(client.head_bucket, Bucket="bucket") == ("403", 403)
        server.allow_only({"s3:PutObject", "s3:GetObject"})
        client.copy_object(**copying)
        server.allow_only(None)
        assert client.list_objects_v2(Bucket="bucket")["KeyCount"] == 3

    def test_missing_key_is_forbidden_to_who_may_not_list(self, server: S3Server, client: Any) -> None:
        server.deny({"s3:ListBucket"})
        assert refusal(client.get_object, Bucket="bucket", Key="none") == ("AccessDenied", 403)
        assert refusal(client.head_object, Bucket="bucket", Key="none") == ("403", 403)
        assert refusal(client.get_object, Bucket="none", Key="none") == ("NoSuchBucket", 404)

    def test_actions_are_logged_by_their_names(self, server: S3Server, client: Any) -> None:
        client.put_object(Bucket="bucket", Key="key", Body=b"")
        client.head_object(Bucket="bucket", Key="key")
        client.head_bucket(Bucket="bucket")
        client.list_objects_v2(Bucket="bucket", Prefix="p")
        client.copy_object(Bucket="bucket", Key="copy", CopySource="bucket/key")
        refusal(client.get_object, Bucket="bucket", Key="none")
        log = [(each.operation, each.action, each.key, each.status) for each in server.actions]
        assert log == [
            ("PutObject", "s3:PutObject", "key", 200),
            ("HeadObject", "s3:GetObject", "key", 200),
            ("HeadBucket", "s3:ListBucket", "", 200),
            ("ListObjectsV2", "s3:ListBucket", "", 200),
            ("CopyObject", "s3:PutObject", "copy", 200),
            ("GetObject", "s3:GetObject", "none", 404),
        ]
        assert server.actions[3].query["prefix"] == "p"
        assert server.actions[4].actions == ("s3:PutObject", "s3:GetObject")
        assert server.actions[0].headers["x-amz-content-sha256"]
        assert {each.connection for each in server.actions} == {1}
        assert server.used() == {"s3:PutObject", "s3:GetObject", "s3:ListBucket"}


class TestTransport:
    def test_tls(self, tmp_path: Path, session: Any) -> None:
        certificate = self_signed(tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        with S3Server(ssl_context=context) as server:
            server.create_bucket("bucket")
            client = session.client(
                "s3",
                endpoint_url=server.url,
                region_name="us-east-1",
                aws_access_key_id=ACCESS_KEY,
                aws_secret_access_key=SECRET_KEY,
                verify=str(certificate),
                config=Config(proxies={}, s3={"addressing_style": "path"}),
            )
            body = bytes(range(256)) * 4096
            client.put_object(Bucket="bucket", Key="key", Body=body)
            assert server.objects("bucket")["key"] == body
            assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == body
            assert urlsplit(server.url).scheme == "https"

    def test_body_is_asked_for_only_if_the_head_is_let_in(self, server: S3Server) -> None:
        server.deny({"s3:PutObject"}, "denied")
        for key, status in (("denied", 403), ("key", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            request = AWSRequest(
                "PUT", f"{server.url}/bucket/{key}", data=b"", headers={"Expect": "100-continue"}
            )
            signer = S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1")
            signer.add_auth(request)
            connection.request(
                "PUT", f"/bucket/{key}", headers={**dict(request.headers), "Content-Length": "0"}
            )
            answer = connection.getresponse()
            assert answer.status == status
            assert answer.will_close is (status == 403)
            connection.close()

    def test_proxy_style_target_is_understood(self, server: S3Server) -> None:
        server.put("bucket", "key", b"content")
        server.anonymous = True
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        connection.request("GET", f"http://elsewhere.example/bucket/{quote('key')}")
        assert connection.getresponse().read() == b"content"
        connection.close()

    def test_stopping_ends_open_connections(self) -> None:
        with S3Server(anonymous=True) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", "/")
            connection.getresponse().read()
        assert connection.sock is not None
        assert connection.sock.recv(1) == b""
        connection.close()


def self_signed(directory: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "server.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path
