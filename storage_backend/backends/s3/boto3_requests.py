"""Boto3Requests: requests through a boto3 client: all if it has custom hooks, else only the infrequent ones."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

from typing_extensions import override

from storage_backend.backends.s3.boto3_client import is_amazon
from storage_backend.backends.s3.boto3_handlers import payer_in_query
from storage_backend.backends.s3.botocore_private import is_botocore, is_stubbed
from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.listing import PageLoopDetector
from storage_backend.backends.s3.object_head import CARRIED, ObjectHead, etag_of
from storage_backend.backends.s3.requests import BodyReader, GetResponse
from storage_backend.backends.s3.responses import FIRST, MOST_ERROR, size_from_head
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.backends.s3.xml_documents import (
    EmbeddedError,
    ErrorDocument,
    ListedObject,
    ListingPage,
    UnexpectedResponseError,
    parse_error,
    unexpected,
)
from storage_backend.streams import SeekableRaw

SIZES = 10**18  # bytes; a larger number is not a size
DIGESTS = {"ChecksumCRC32": "crc32", "ChecksumSHA1": "sha1", "ChecksumSHA256": "sha256"}


class Boto3Requests:
    """All requests, by the methods of a boto3 client.

    botocore accepts any document that it can parse as a response of S3, so required fields are checked here.

    Args:
        client: a boto3 client, or an object that behaves like one.
        settings: the settings of the storage.
    """

    def __init__(self, client: Any, settings: S3Settings) -> None:
        self.client = client
        self.verifies_checksums = is_amazon(client)
        self._ours = settings.client is None
        self._checksum = settings.checksum
        self._bucket = {"Bucket": settings.bucket}
        if settings.request_payer is not None:
            self._bucket["RequestPayer"] = settings.request_payer

    @property
    def is_real_service(self) -> bool:
        """See `ObjectRequests`."""
        return is_botocore(self.client) and not is_stubbed(self.client)

    @property
    def checksum(self) -> str:
        """See `ObjectRequests`."""
        if self._checksum != "auto":
            return self._checksum
        if not self._ours or not self.is_real_service:
            return "none"
        return "auto" if self.verifies_checksums else "md5"

    def get(self, key: str, **parameters: Any) -> GetResponse:
        """GetObject."""
        response = self._call("get_object", **self._bucket, Key=key, **parameters)
        length = _kind(response, "ContentLength", int)
        content_range = _kind(response, "ContentRange", str)
        try:
            self._check(response, "ETag", "an object with an ETag")
            partial = content_range is not None or _status(response) == 206
            if "Range" not in parameters and self.is_real_service and partial:
                _refuse(response, "the whole object")
            # A connection can break at any time, so its end does not prove that the body is complete.
            if length is None and self.is_real_service and "transfer-encoding" not in _headers(response):
                _refuse(response, "Content-Length, or a body in chunks")
            start, whole = _bounds(content_range, length)
            if whole is None and self.is_real_service and parameters.get("Range") != FIRST:
                whole = self._size_from_head(key, parameters, response)
        except UnexpectedResponseError as error:
            with closing(response["Body"]) as body:
                refused = parse_error(body.read(MOST_ERROR))
            raise error if refused is None else EmbeddedError(refused) from None
        except BaseException:
            response["Body"].close()
            raise
        return GetResponse(_head_of(response, size=whole), start, length, cast(BodyReader, response["Body"]))

    def head(self, key: str, **parameters: Any) -> ObjectHead:
        """HeadObject."""
        response = self._call("head_object", **self._bucket, Key=key, **parameters)
        return _head_of(self._check(response, "ETag", "an ETag"))

    def put(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """PutObject."""
        with _sent(body) as content:
            response = self._call("put_object", **self._bucket, Key=key, Body=content, **parameters)
        return _head_of(self._check(response, "ETag", "an ETag"))

    def delete(self, key: str, **parameters: Any) -> None:
        """DeleteObject."""
        response = self._call("delete_object", **self._bucket, Key=key, **parameters)
        if self.is_real_service and not _is_removal(_status(response), _headers(response)):
            _refuse(response, "status 204")

    def delete_batch(self, keys: Sequence[str]) -> dict[str, ErrorDocument]:
        """DeleteObjects."""
        # Without Quiet the response names each key, which no other document does.
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": not self.is_real_service}
        response = self._call("delete_objects", **self._bucket, Delete=objects)
        refused = {
            _needed(error, "Key"): ErrorDocument(
                str(error.get("Code", "")), str(error.get("Message", "")), None, {}
            )
            for error in _items(response, "Errors")
        }
        named = {found.get("Key") for found in _items(response, "Deleted")} | refused.keys()
        if self.is_real_service and not named.issuperset(keys):
            _refuse(response, "a result for each key")
        return refused

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> ListingPage:
        """ListObjectsV2. botocore sends encoding-type=url and decodes the keys."""
        optional = {"Delimiter": delimiter, "ContinuationToken": token, "MaxKeys": limit}
        response = self._call(
            "list_objects_v2",
            **self._bucket,
            Prefix=prefix,
            **{name: value for name, value in optional.items() if value},
        )
        self._check(response, "IsTruncated", "IsTruncated, true or false")
        more = response.get("IsTruncated") is True
        if more:
            self._check(response, "NextContinuationToken", "NextContinuationToken, as IsTruncated is true")
        return ListingPage(
            [_entry(found) for found in _items(response, "Contents")],
            [_needed(found, "Prefix") for found in _items(response, "CommonPrefixes")],
            _kind(response, "NextContinuationToken", str) if more else None,
        )

    def copy(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """CopyObject."""
        response = self._call(
            "copy_object", **self._bucket, Key=key, CopySource=_source(source), **parameters
        )
        return _head_of(self._check(response.get("CopyObjectResult") or {}, "ETag", "a copy with its ETag"))

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """UploadPart."""
        with _sent(body) as content:
            response = self._call("upload_part", **self._bucket, Key=key, Body=content, **parameters)
        return _head_of(self._check(response, "ETag", "an ETag"))

    def copy_part(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """UploadPartCopy."""
        response = self._call(
            "upload_part_copy", **self._bucket, Key=key, CopySource=_source(source), **parameters
        )
        return _head_of(self._check(response.get("CopyPartResult") or {}, "ETag", "a copy with its ETag"))

    def create_upload(self, key: str, **parameters: Any) -> str:
        """CreateMultipartUpload; returns the upload's id."""
        response = self._call("create_multipart_upload", **self._bucket, Key=key, **parameters)
        return str(_needed(response, "UploadId"))

    def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[Mapping[str, Any]], **parameters: Any
    ) -> ObjectHead:
        """CompleteMultipartUpload; *parts* have PartNumber and ETag."""
        response = self._call(
            "complete_multipart_upload",
            **self._bucket,
            Key=key,
            UploadId=upload_id,
            MultipartUpload={"Parts": list(parts)},
            **parameters,
        )
        return _head_of(self._check(response, "ETag", "an object with an ETag"))

    def abort_upload(self, key: str, upload_id: str) -> None:
        """AbortMultipartUpload."""
        self._call("abort_multipart_upload", **self._bucket, Key=key, UploadId=upload_id)

    def parts(self, key: str, upload_id: str) -> dict[int, tuple[int, str]]:
        """ListParts: number -> size in bytes and etag."""
        found: dict[int, tuple[int, str]] = {}
        marker: dict[str, Any] = {}
        trail = PageLoopDetector()
        while True:
            response = self._call("list_parts", **self._bucket, Key=key, UploadId=upload_id, **marker)
            before = len(found)
            for part in _items(response, "Parts"):
                etag = etag_of(_needed(part, "ETag"))
                found[_needed(part, "PartNumber")] = (_needed(part, "Size"), etag or "")
            if response.get("IsTruncated") is not True:
                return found
            marker = {"PartNumberMarker": _needed(response, "NextPartNumberMarker")}
            trail.follow(marker, new=len(found) > before)

    def uploads(self, prefix: str) -> Iterator[tuple[str, str, datetime]]:
        """ListMultipartUploads: key, upload id and start time of each unfinished one."""
        marker: dict[str, Any] = {}
        trail = PageLoopDetector()
        while True:
            response = self._call("list_multipart_uploads", **self._bucket, Prefix=prefix, **marker)
            uploads = _items(response, "Uploads")
            for upload in uploads:
                yield _needed(upload, "Key"), _needed(upload, "UploadId"), _needed(upload, "Initiated")
            if response.get("IsTruncated") is not True:
                return
            marker = {
                "KeyMarker": _needed(response, "NextKeyMarker"),
                "UploadIdMarker": response.get("NextUploadIdMarker", ""),
            }
            trail.follow(marker, new=bool(uploads))

    def tags(self, bucket: str, key: str) -> dict[str, str]:
        """GetObjectTagging for an object in any bucket."""
        response = self._call("get_object_tagging", **self._bucket | {"Bucket": bucket}, Key=key)
        if "TagSet" not in response:
            _refuse(response, "TagSet")
        return {_needed(tag, "Key"): _needed(tag, "Value") for tag in _items(response, "TagSet")}

    def create_bucket(self) -> None:
        """CreateBucket, in the client's region."""
        region = getattr(getattr(self.client, "meta", None), "region_name", None)
        place: dict[str, Any] = {"Bucket": self._bucket["Bucket"]}
        # "us-east-1" must not be sent ("CreateBucket", Amazon S3 API Reference); "aws-global" is not a region.
        if isinstance(region, str) and region not in {"us-east-1", "aws-global"}:
            place["CreateBucketConfiguration"] = {"LocationConstraint": region}
        self._call("create_bucket", **place)

    def presigned(self, method: str, key: str, expires_in: int, **parameters: Any) -> str:
        """A URL for *method*, "get_object" or "put_object"; no I/O."""
        with self._payer_in_query():
            return str(
                self.client.generate_presigned_url(
                    method, Params={**self._bucket, "Key": key, **parameters}, ExpiresIn=expires_in
                )
            )

    @contextmanager
    def _payer_in_query(self) -> Iterator[None]:
        if self._ours or "RequestPayer" not in self._bucket or not self.is_real_service:
            yield
            return
        thread = threading.get_ident()

        def move(**keywords: Any) -> None:
            if threading.get_ident() == thread:
                payer_in_query(**keywords)

        # Only for this call: the client's owner may send the header that other URLs need.
        self.client.meta.events.register("before-sign.s3", move)
        try:
            yield
        finally:
            self.client.meta.events.unregister("before-sign.s3", move)

    def _size_from_head(self, key: str, parameters: Mapping[str, Any], response: Any) -> int | None:
        same = {"VersionId": parameters["VersionId"]} if "VersionId" in parameters else {}
        etag = etag_of(_kind(response, "ETag", str))
        return size_from_head(
            etag, lambda: self.head(key, **same), lambda: self.get(key, Range=FIRST, **same)
        )

    def _call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the client. For a response that it cannot parse, botocore raises various built-in errors."""
        try:
            return getattr(self.client, method)(**parameters)
        except UnexpectedResponseError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            if not self.is_real_service:
                raise
            raise unexpected("a response that botocore can read", str(error)) from error

    def _check(self, response: Any, field: str, expected: str) -> Any:
        """Return *response* after checking that a real service has sent *field*."""
        if self.is_real_service and response.get(field) in {None, ""}:
            _refuse(response, expected)
        return response


def _needed(response: Any, field: str) -> Any:
    found = response.get(field)
    if found is None:
        _refuse(response, field)
    return found


def _refuse(response: Any, expected: str) -> NoReturn:
    kind = _headers(response).get("content-type", "no Content-Type")
    raise unexpected(expected, f"status {_status(response) or 200}, {kind}")


def _is_removal(status: int, headers: Mapping[str, str]) -> bool:
    # S3 sends 204; "200 OK" without a body may come from any server.
    empty = headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers
    return status == 204 or (empty and any(name.startswith("x-amz-") for name in headers))


def _status(response: Any) -> int:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _headers(response: Any) -> Mapping[str, str]:
    found = response.get("ResponseMetadata", {}).get("HTTPHeaders")
    return found if isinstance(found, dict) else {}


def _head_of(response: Any, size: int | None = None) -> ObjectHead:
    modified = _kind(response, "LastModified", datetime)
    whole = response.get("ChecksumType") != "COMPOSITE"
    digests = {
        name: value
        for field, name in DIGESTS.items()
        if (value := _kind(response, field, str)) is not None and whole and "-" not in value
    }
    metadata = response.get("Metadata")
    return ObjectHead(
        size=_kind(response, "ContentLength", int) if size is None else size,
        modified=None if modified is None else _second(modified),
        etag=etag_of(_kind(response, "ETag", str)),
        content_type=_kind(response, "ContentType", str),
        digests=digests,
        encryption=_kind(response, "ServerSideEncryption", str),
        metadata=metadata if isinstance(metadata, dict) else {},
        # Expires as a string: values like "0" are not dates, but valid.
        carried={
            name: value
            for name in CARRIED.values()
            if (value := _kind(response, "ExpiresString" if name == "Expires" else name, str)) is not None
        },
    )


def _entry(found: Mapping[str, Any]) -> ListedObject:
    modified = found.get("LastModified")
    return ListedObject(
        _needed(found, "Key"),
        _kind(found, "Size", int),
        _second(modified) if isinstance(modified, datetime) else None,
        etag_of(found.get("ETag")),
    )


def _second(moment: datetime) -> datetime:
    """In whole seconds, as HEAD has them."""
    return moment.astimezone(UTC).replace(microsecond=0)


def _kind(response: Any, field: str, kind: type) -> Any:
    """A field of a response; None if it is absent, of another type (from a mock), or not a possible size."""
    found = response.get(field)
    if isinstance(found, int) and not 0 <= found < SIZES:
        return None
    return found if isinstance(found, kind) else None


def _items(response: Any, field: str) -> Sequence[Any]:
    found = response.get(field)
    return found if isinstance(found, list) else []


def _bounds(content_range: str | None, length: int | None) -> tuple[int, int | None]:
    """The offset of a body in its object, and the object's size, from "bytes 0-9/100"."""
    if content_range is None:
        return 0, length
    span, _, whole = content_range.removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdecimal():
        raise unexpected("Content-Range, bytes first-last/size", content_range)
    return int(first), int(whole) if whole.isdecimal() and int(whole) < SIZES else None


def _source(source: str) -> dict[str, str]:
    bucket, _, key = source.partition("/")
    return {"Bucket": bucket, "Key": key}


@contextmanager
def _sent(body: bytes | memoryview | FilePart) -> Iterator[Any]:
    """The body of a request in a form that boto3 accepts."""
    if isinstance(body, FilePart):
        with io.BufferedReader(_PartReader(body)) as reader:
            yield reader
    else:
        yield bytes(body)  # of bytes no copy


class _PartReader(SeekableRaw):
    """A seekable reader of a part of a file, by positioned reads, so that several can share the descriptor."""

    def __init__(self, part: FilePart) -> None:
        self.size = part.size
        self._part = part

    @override
    def _read_on(self, most: int) -> bytes:
        return self._part.read(self._position, most) if self._position < self.size else b""
