"""ClientCalls: every request through a boto3 client, whoever made it; the rare ones always."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from storage_backend.backends.s3.calls import Body, Facts, Got
from storage_backend.backends.s3.documents import Entry, Page, Refused, etag_of
from storage_backend.backends.s3.http import FilePart
from storage_backend.streams import position_after

DIGESTS = {"ChecksumCRC32": "crc32", "ChecksumSHA1": "sha1", "ChecksumSHA256": "sha256"}


class ClientCalls:
    """Requests by a client's own methods. What is no botocore client (a mock) may leave out any field of an answer.

    Args:
        client: with boto3's methods.
        bucket: its name.
        payer: "requester", or None.
    """

    def __init__(self, client: Any, bucket: str, payer: str | None = None) -> None:
        self.client = client
        self._bucket = {"Bucket": bucket}
        if payer is not None:
            self._bucket["RequestPayer"] = payer

    def get(self, key: str, **parameters: Any) -> Got:
        """GetObject."""
        answer = self.client.get_object(**self._bucket, Key=key, **parameters)
        length = _kind(answer, "ContentLength", int)
        start, whole = _bounds(_kind(answer, "ContentRange", str), length)
        facts = _facts(answer, size=whole)
        return Got(facts, start, length, cast(Body, answer["Body"]))

    def head(self, key: str, **parameters: Any) -> Facts:
        """HeadObject."""
        return _facts(self.client.head_object(**self._bucket, Key=key, **parameters))

    def put(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> Facts:
        """PutObject."""
        with _sent(body) as content:
            return _facts(self.client.put_object(**self._bucket, Key=key, Body=content, **parameters))

    def delete(self, key: str, **parameters: Any) -> None:
        """DeleteObject."""
        self.client.delete_object(**self._bucket, Key=key, **parameters)

    def delete_batch(self, keys: Sequence[str]) -> dict[str, Refused]:
        """DeleteObjects."""
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self.client.delete_objects(**self._bucket, Delete=objects)
        return {
            error["Key"]: Refused(str(error.get("Code", "")), str(error.get("Message", "")), None, {})
            for error in _items(answer, "Errors")
        }

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> Page:
        """ListObjectsV2. botocore asks for encoding-type=url, and decodes."""
        optional = {"Delimiter": delimiter, "ContinuationToken": token, "MaxKeys": limit}
        answer = self.client.list_objects_v2(
            **self._bucket, Prefix=prefix, **{name: value for name, value in optional.items() if value}
        )
        return Page(
            [_entry(found) for found in _items(answer, "Contents")],
            [found["Prefix"] for found in _items(answer, "CommonPrefixes")],
            _kind(answer, "NextContinuationToken", str) if answer.get("IsTruncated") is True else None,
        )

    def copy(self, key: str, source: str, **parameters: Any) -> Facts:
        """CopyObject."""
        answer = self.client.copy_object(**self._bucket, Key=key, CopySource=_source(source), **parameters)
        return _facts(answer.get("CopyObjectResult") or {})

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> Facts:
        """UploadPart."""
        with _sent(body) as content:
            return _facts(self.client.upload_part(**self._bucket, Key=key, Body=content, **parameters))

    def copy_part(self, key: str, source: str, **parameters: Any) -> Facts:
        """UploadPartCopy."""
        answer = self.client.upload_part_copy(
            **self._bucket, Key=key, CopySource=_source(source), **parameters
        )
        return _facts(answer.get("CopyPartResult") or {})

    def create_upload(self, key: str, **parameters: Any) -> str:
        """CreateMultipartUpload; the upload's id."""
        return str(self.client.create_multipart_upload(**self._bucket, Key=key, **parameters)["UploadId"])

    def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Mapping[str, Any]], **parameters: Any
    ) -> Facts:
        """CompleteMultipartUpload; *parts* have PartNumber and ETag."""
        answer = self.client.complete_multipart_upload(
            **self._bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": list(parts)}, **parameters
        )
        return _facts(answer)

    def abort_upload(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload."""
        self.client.abort_multipart_upload(**self._bucket, Key=key, UploadId=upload_id)

    def parts(self, key: str, upload_id: str) -> dict[int, tuple[int, str]]:
        """ListParts: number -> size in bytes and etag."""
        found: dict[int, tuple[int, str]] = {}
        marker: dict[str, Any] = {}
        while True:
            answer = self.client.list_parts(**self._bucket, Key=key, UploadId=upload_id, **marker)
            for part in _items(answer, "Parts"):
                found[part["PartNumber"]] = (part["Size"], etag_of(part["ETag"]) or "")
            if answer.get("IsTruncated") is not True:
                return found
            marker = {"PartNumberMarker": answer["NextPartNumberMarker"]}

    def uploads(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        """ListMultipartUploads: key, upload id and beginning of each unfinished one."""
        marker: dict[str, Any] = {}
        while True:
            answer = self.client.list_multipart_uploads(**self._bucket, Prefix=prefix, **marker)
            for upload in _items(answer, "Uploads"):
                yield upload["Key"], upload["UploadId"], upload["Initiated"]
            if answer.get("IsTruncated") is not True:
                return
            marker = {
                "KeyMarker": answer["NextKeyMarker"],
                "UploadIdMarker": answer.get("NextUploadIdMarker", ""),
            }

    def create_bucket(self) -> None:
        """CreateBucket, in the client's region."""
        region = getattr(getattr(self.client, "meta", None), "region_name", None)
        place: dict[str, Any] = {"Bucket": self._bucket["Bucket"]}
        # "us-east-1" must not be named ("CreateBucket", Amazon S3 API Reference); "aws-global" is no region.
        if isinstance(region, str) and region not in {"us-east-1", "aws-global"}:
            place["CreateBucketConfiguration"] = {"LocationConstraint": region}
        self.client.create_bucket(**place)

    def presigned(self, method: str, key: str, expires_in: int, **parameters: Any) -> str:
        """A URL for *method*, "get_object" or "put_object"; no I/O."""
        return str(
            self.client.generate_presigned_url(
                method, Params={**self._bucket, "Key": key, **parameters}, ExpiresIn=expires_in
            )
        )


def _facts(answer: Any, size: int | None = None) -> Facts:
    modified = _kind(answer, "LastModified", datetime)
    whole = answer.get("ChecksumType") != "COMPOSITE"
    digests = {
        name: value
        for field, name in DIGESTS.items()
        if (value := _kind(answer, field, str)) is not None and whole and "-" not in value
    }
    metadata = answer.get("Metadata")
    return Facts(
        size=_kind(answer, "ContentLength", int) if size is None else size,
        modified=None if modified is None else _second(modified),
        etag=etag_of(_kind(answer, "ETag", str)),
        content_type=_kind(answer, "ContentType", str),
        version_id=_kind(answer, "VersionId", str),
        digests=digests,
        encryption=_kind(answer, "ServerSideEncryption", str),
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _entry(found: Mapping[str, Any]) -> Entry:
    modified = found.get("LastModified")
    return Entry(
        found["Key"],
        _kind(found, "Size", int),
        _second(modified) if isinstance(modified, datetime) else None,
        etag_of(found.get("ETag")),
    )


def _second(moment: datetime) -> datetime:
    """In whole seconds: HEAD has no finer."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _kind(answer: Any, field: str, kind: type) -> Any:
    """A field of an answer; None if it is absent or, from a mock, of another kind."""
    found = answer.get(field)
    return found if isinstance(found, kind) else None


def _items(answer: Any, field: str) -> Sequence[Any]:
    found = answer.get(field)
    return found if isinstance(found, list) else []


def _bounds(content_range: str | None, length: int | None) -> tuple[int, int | None]:
    """Where a body begins in its object, and the size of the whole, from "bytes 0-9/100"."""
    if content_range is None:
        return 0, length
    span, _, whole = content_range.removeprefix("bytes ").partition("/")
    return int(span.partition("-")[0]), int(whole) if whole.isdecimal() else None


def _source(source: str) -> dict[str, str]:
    bucket, _, key = source.partition("/")
    return {"Bucket": bucket, "Key": key}


class _sent:  # noqa: N801 - reads as a function
    """The body of a request as boto3 takes it, closed afterwards."""

    def __init__(self, body: bytes | memoryview | FilePart) -> None:
        self._content: Any
        if isinstance(body, FilePart):
            self._content = io.BufferedReader(_PartReader(body))
        elif isinstance(body, memoryview):
            self._content = bytes(body)
        else:
            self._content = body

    def __enter__(self) -> Any:
        return self._content

    def __exit__(self, *error: object) -> None:
        if isinstance(self._content, io.BufferedReader):
            self._content.close()


class _PartReader(io.RawIOBase):
    """A seekable reader of a part of a file, by positioned reads, so that many may share the descriptor."""

    def __init__(self, part: FilePart) -> None:
        self._part = part
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._position = position_after(offset, whence, self._position, self._part.size)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._part.size - self._position)]
        if not view:
            return 0
        done = os.preadv(self._part.fd, [view], self._part.offset + self._position)
        self._position += done
        return done
