"""The S3 server's verbs for buckets and whole objects."""

from __future__ import annotations

import threading
from collections.abc import Callable
from urllib.parse import parse_qsl

from tests.s3_server_forms import (
    NAMESPACE,
    check_reading,
    checksum_elements,
    checksum_headers,
    date_of,
    denied,
    described,
    failed,
    iso,
    kept,
    malformed,
    names,
    parse,
    span_of,
    written,
)
from tests.s3_server_routes import Permissions, copy_source
from tests.s3_server_store import Bucket, Settings, Stored, checksum, md5
from tests.s3_server_wire import Request, Response, S3Error, text_of, xml

_OF_SYSTEM = ("x-amz-server-side-encryption", "x-amz-storage-class")  # not copied with the metadata
_OVERRIDES = (
    *("cache-control", "content-disposition", "content-encoding"),
    *("content-language", "content-type", "expires"),
)


class Objects:
    """Buckets and their objects, and the verbs over them. Thread-safe.

    Args:
        clock: POSIX seconds.
        region: where buckets are, unless they say otherwise.
        permissions: what the users may do.
        settings: the limits.
    """

    def __init__(
        self, clock: Callable[[], float], region: str, permissions: Permissions, settings: Settings
    ) -> None:
        self.clock = clock
        self.region = region
        self.permissions = permissions
        self.settings = settings
        self.buckets: dict[str, Bucket] = {}
        self.lock = threading.RLock()

    def bucket(self, name: str) -> Bucket:
        """The bucket of that name.

        Raises:
            S3Error: there is none.
        """
        bucket = self.buckets.get(name)
        if bucket is None:
            raise S3Error("NoSuchBucket", 404, "The specified bucket does not exist", BucketName=name)
        return bucket

    def list_buckets(self, request: Request) -> Response:
        with self.lock:
            names = "".join(
                f"<Bucket><Name>{name}</Name><CreationDate>{iso(0)}</CreationDate></Bucket>"
                for name in sorted(self.buckets)
            )
        owner = "<Owner><ID>owner</ID></Owner>"
        return xml(
            f"<ListAllMyBucketsResult {NAMESPACE}>{owner}<Buckets>{names}</Buckets></ListAllMyBucketsResult>"
        )

    def create_bucket(self, request: Request) -> Response:
        region = self.region
        if request.body:
            region = parse(request.body).findtext("{*}LocationConstraint") or region
        with self.lock:
            known = self.buckets.get(request.bucket)
            # "us-east-1" keeps the old behaviour: CreateBucket, Amazon S3 API Reference.
            if known is not None and (known.region != "us-east-1" or region != "us-east-1"):
                message = "Your previous request to create the named bucket succeeded and you already own it."
                raise S3Error("BucketAlreadyOwnedByYou", 409, message, BucketName=request.bucket)
            if known is None:
                self.buckets[request.bucket] = Bucket(request.bucket, region)
        return Response(200, {"Location": f"/{request.bucket}"})

    def head_bucket(self, request: Request) -> Response:
        with self.lock:
            region = self.bucket(request.bucket).region
        return Response(200, {"x-amz-bucket-region": region, "Content-Type": "application/xml"})

    def delete_bucket(self, request: Request) -> Response:
        with self.lock:
            if self.bucket(request.bucket).order():
                message = "The bucket you tried to delete is not empty"
                raise S3Error("BucketNotEmpty", 409, message, BucketName=request.bucket)
            del self.buckets[request.bucket]
        return Response(204)

    def get_bucket_location(self, request: Request) -> Response:
        with self.lock:
            region = self.bucket(request.bucket).region
        return xml(
            f"<LocationConstraint {NAMESPACE}>{'' if region == 'us-east-1' else region}</LocationConstraint>"
        )

    def get_object(self, request: Request) -> Response:
        """GetObject and HeadObject: the server sends no body for the latter."""
        with self.lock:
            stored = self.find(request.bucket, request.key, request.query.get("versionId"))
            versioned = self.buckets[request.bucket].versioning
        headers = described(stored, versioned=versioned)
        check_reading(request.headers, stored, headers)
        for name in _OVERRIDES:
            if f"response-{name}" in request.query:
                headers[name] = request.query[f"response-{name}"]
        span = span_of(request.headers.get("range"), len(stored.body))
        if span is not None:
            first, last = span
            headers["Content-Range"] = f"bytes {first}-{last}/{len(stored.body)}"
            return Response(206, headers, stored.body[first : last + 1])
        if request.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= checksum_headers(stored.checksums, stored.checksum_type)
        return Response(200, headers, stored.body)

    def get_object_tagging(self, request: Request) -> Response:
        with self.lock:
            stored = self.find(request.bucket, request.key)
        tags = "".join(
            f"<Tag><Key>{text_of(name)}</Key><Value>{text_of(value)}</Value></Tag>"
            for name, value in parse_qsl(stored.headers.get("x-amz-tagging", ""), keep_blank_values=True)
        )
        return xml(f"<Tagging {NAMESPACE}><TagSet>{tags}</TagSet></Tagging>")

    def put_object(self, request: Request) -> Response:
        if len(request.body) > self.settings.put_limit:
            message = "Your proposed upload exceeds the maximum allowed object size."
            raise S3Error(
                "EntityTooLarge",
                400,
                message,
                ProposedSize=len(request.body),
                MaxSizeAllowed=self.settings.put_limit,
            )
        etag = md5(request.body)
        stored = self.store(
            request,
            request.key,
            Stored(request.body, etag, self.clock(), kept(request.headers), request.checksums),
        )
        return Response(200, written(stored) | checksum_headers(request.checksums, stored.checksum_type))

    def copy_object(self, request: Request) -> Response:
        source_bucket, source_key, version = copy_source(request)
        source = self.source(request, source_bucket, source_key, version)
        if len(source.body) > self.settings.copy_limit:
            raise self.too_large()
        replaced = request.headers.get("x-amz-metadata-directive", "COPY").upper() == "REPLACE"
        sent = kept(request.headers)
        here = (source_bucket, source_key) == (request.bucket, request.key) and version is None
        if here and not replaced and not any(name in request.headers for name in _OF_SYSTEM):
            raise S3Error(
                "InvalidRequest",
                400,
                "This copy request is illegal because it is trying to copy an object to itself without changing the "
                "object's metadata, storage class, website redirect location or encryption attributes.",
            )
        headers = sent
        if not replaced:
            own = {name: value for name, value in sent.items() if name.startswith(_OF_SYSTEM)}
            headers = {
                name: value for name, value in source.headers.items() if not name.startswith(_OF_SYSTEM)
            } | own
        checksums = source.checksums if source.checksum_type == "FULL_OBJECT" else {}
        algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower()
        for name in [algorithm] if algorithm else [name for name in source.checksums if not checksums]:
            checksums = {name: checksum(name, source.body)}
        copy = Stored(source.body, md5(source.body), self.clock(), headers, checksums)
        stored = self.store(request, request.key, copy)
        result = f"<LastModified>{iso(stored.modified)}</LastModified><ETag>&quot;{stored.etag}&quot;</ETag>"
        sums = checksum_elements(stored.checksums, stored.checksum_type)
        answer = {name: value for name, value in written(stored).items() if name != "ETag"}
        return xml(f"<CopyObjectResult {NAMESPACE}>{result}{sums}</CopyObjectResult>", headers=answer)

    def delete_object(self, request: Request) -> Response:
        with self.lock:
            bucket = self.bucket(request.bucket)
            expected = request.headers.get("if-match")
            if expected is not None:
                self._check_match(bucket, request.key, expected)
            headers = self._delete(bucket, request.key, request.query.get("versionId"))
        return Response(204, headers)

    def delete_objects(self, request: Request) -> Response:
        if "content-md5" not in request.headers and not request.checksums:
            raise S3Error("InvalidRequest", 400, "Missing required header for this request: Content-MD5")
        root = parse(request.body)
        wanted = root.findall("{*}Object")
        if not 1 <= len(wanted) <= 1000:
            raise malformed()
        quiet = (root.findtext("{*}Quiet") or "").lower() == "true"
        found = []
        with self.lock:
            bucket = self.bucket(request.bucket)
            for each in wanted:
                key, version = each.findtext("{*}Key") or "", each.findtext("{*}VersionId")
                name = f"<Key>{text_of(key)}</Key>" + (f"<VersionId>{version}</VersionId>" if version else "")
                action = "s3:DeleteObjectVersion" if version else "s3:DeleteObject"
                if not self.permissions.permits(action, key):
                    denied = "<Code>AccessDenied</Code><Message>Access Denied</Message>"
                    found.append(f"<Error>{name}{denied}</Error>")
                    continue
                self._delete(bucket, key, version)
                if not quiet:
                    found.append(f"<Deleted>{name}</Deleted>")
        return xml(f"<DeleteResult {NAMESPACE}>{''.join(found)}</DeleteResult>")

    def find(self, bucket_name: str, key: str, version: str | None = None) -> Stored:
        """The object, or that version of it.

        Raises:
            S3Error: there is none, or one may not know whether there is.
        """
        bucket = self.bucket(bucket_name)
        if version is not None:
            stored = bucket.version(key, version)
            if stored is None:
                message = "The specified version does not exist."
                raise S3Error("NoSuchVersion", 404, message, Key=key, VersionId=version)
            if stored.marker:
                message = "The specified method is not allowed against this resource."
                raise S3Error("MethodNotAllowed", 405, message, headers={"x-amz-delete-marker": "true"})
            return stored
        stored = bucket.current(key)
        if stored is not None:
            return stored
        # "If you don't have the s3:ListBucket permission, S3 returns 403": GetObject, Amazon S3 API Reference.
        if not self.permissions.permits("s3:ListBucket"):
            raise denied()
        headers = {}
        if (marker := bucket.latest(key)) is not None:
            headers = {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version}
        raise S3Error("NoSuchKey", 404, "The specified key does not exist.", headers=headers, Key=key)

    def source(self, request: Request, bucket: str, key: str, version: str | None) -> Stored:
        """What is to be copied; its conditions hold.

        Raises:
            S3Error: it is gone, or a condition fails.
        """
        with self.lock:
            stored = self.find(bucket, key, version)
        headers = request.headers
        match = headers.get("x-amz-copy-source-if-match")
        none_match = headers.get("x-amz-copy-source-if-none-match")
        unmodified = headers.get("x-amz-copy-source-if-unmodified-since")
        modified = headers.get("x-amz-copy-source-if-modified-since")
        if match is not None and not names(match, stored.etag):
            raise failed("x-amz-copy-source-If-Match")
        if none_match is not None and names(none_match, stored.etag):
            raise failed("x-amz-copy-source-If-None-Match")
        if match is None and unmodified is not None and int(stored.modified) > date_of(unmodified):
            raise failed("x-amz-copy-source-If-Unmodified-Since")
        if none_match is None and modified is not None and int(stored.modified) <= date_of(modified):
            raise failed("x-amz-copy-source-If-Modified-Since")
        return stored

    def too_large(self) -> S3Error:
        """The error for a source that one copy cannot take."""
        message = "The specified copy source is larger than the maximum allowable size for a copy source: "
        return S3Error("InvalidRequest", 400, f"{message}{self.settings.copy_limit}")

    def store(self, request: Request, key: str, stored: Stored) -> Stored:
        """Make *stored* the object, if the request's conditions hold; it with its version."""
        with self.lock:
            bucket = self.bucket(request.bucket)
            none_match, match = request.headers.get("if-none-match"), request.headers.get("if-match")
            if none_match is not None:
                if none_match != "*":
                    message = "A header you provided implies functionality that is not implemented"
                    raise S3Error("NotImplemented", 501, message, Header="If-None-Match")
                if bucket.current(key) is not None:
                    raise failed("If-None-Match")
            if match is not None:
                self._check_match(bucket, key, match)
            version = bucket.next_version()
            if version != "null":
                stored = Stored(
                    stored.body,
                    stored.etag,
                    stored.modified,
                    stored.headers,
                    stored.checksums,
                    stored.checksum_type,
                    version,
                )
            bucket.put(key, stored)
        return stored

    @staticmethod
    def _check_match(bucket: Bucket, key: str, expected: str) -> None:
        current = bucket.current(key)
        if current is None:
            raise S3Error("NoSuchKey", 404, "The specified key does not exist.", Key=key)
        if not names(expected, current.etag):
            raise failed("If-Match")

    def _delete(self, bucket: Bucket, key: str, version: str | None) -> dict[str, str]:
        if version is not None or not bucket.versioning:
            bucket.remove(key, version)
            return {"x-amz-version-id": version} if version else {}
        marker = Stored(b"", "", self.clock(), version=bucket.next_version(), marker=True)
        bucket.put(key, marker)
        return {"x-amz-delete-marker": "true", "x-amz-version-id": marker.version}
