"""The S3 server's verbs for multipart uploads."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from itertools import pairwise
from xml.etree import ElementTree as ET

from tests.s3_server_forms import (
    NAMESPACE,
    checksum_elements,
    encoder,
    iso,
    kept,
    malformed,
    number,
    parse,
    written,
)
from tests.s3_server_objects import Objects
from tests.s3_server_routes import copy_source
from tests.s3_server_store import (
    COMPOSITE,
    DIGESTS,
    FULL_OBJECT,
    WHOLE,
    Part,
    Stored,
    Upload,
    checksum,
    composite,
    md5,
)
from tests.s3_server_wire import Request, Response, S3Error, text_of, xml

_SOURCE_RANGE = re.compile(r"bytes=(\d+)-(\d+)")
PARTS = 10_000  # "Amazon S3 multipart upload limits"


class Uploads:
    """Unfinished uploads, and the verbs over them. Thread-safe."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def create(self, request: Request) -> Response:
        algorithm = request.headers.get("x-amz-checksum-algorithm", "").lower() or None
        default = FULL_OBJECT if algorithm == "crc64nvme" else COMPOSITE
        kind = request.headers.get("x-amz-checksum-type", default).upper()
        if algorithm is not None and algorithm not in DIGESTS:
            raise S3Error("InvalidRequest", 400, "Checksum algorithm provided is unsupported.")
        if algorithm is not None and ((kind == FULL_OBJECT) > (algorithm in WHOLE)):
            message = f"The {kind} checksum type cannot be used with the {algorithm} checksum algorithm."
            raise S3Error("InvalidRequest", 400, message)
        upload_id = uuid.uuid4().hex
        upload = Upload(request.key, upload_id, self._objects.clock(), kept(request.headers), algorithm, kind)
        with self._objects.lock:
            self._objects.bucket(request.bucket).uploads[upload_id] = upload
        headers = (
            {}
            if algorithm is None
            else {
                "x-amz-checksum-algorithm": algorithm.upper(),
                "x-amz-checksum-type": kind,
            }
        )
        return xml(
            f"<InitiateMultipartUploadResult {NAMESPACE}><Bucket>{request.bucket}</Bucket>"
            f"<Key>{text_of(request.key)}</Key><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>",
            headers=headers,
        )

    def upload_part(self, request: Request) -> Response:
        if len(request.body) > self._objects.settings.put_limit:
            raise S3Error(
                "EntityTooLarge", 400, "Your proposed upload exceeds the maximum allowed object size."
            )
        part = self._put(request, request.body, dict(request.checksums))
        headers = {"ETag": f'"{part.etag}"', "x-amz-server-side-encryption": "AES256"}
        return Response(
            200, headers | {f"x-amz-checksum-{name}": value for name, value in part.checksums.items()}
        )

    def upload_part_copy(self, request: Request) -> Response:
        source = self._objects.source(request, *copy_source(request))
        body = source.body
        span = request.headers.get("x-amz-copy-source-range")
        if span is not None:
            found = _SOURCE_RANGE.fullmatch(span)
            if found is None:
                message = (
                    "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the "
                    "zero-based offsets of the first and last bytes to copy"
                )
                raise S3Error(
                    "InvalidArgument",
                    400,
                    message,
                    ArgumentName="x-amz-copy-source-range",
                    ArgumentValue=span,
                )
            first, last = int(found[1]), int(found[2])
            if not first <= last < len(body):
                message = f"Range specified is not valid for source object of size: {len(body)}"
                raise S3Error(
                    "InvalidArgument",
                    400,
                    message,
                    ArgumentName="x-amz-copy-source-range",
                    ArgumentValue=span,
                )
            body = body[first : last + 1]
        if len(body) > self._objects.settings.copy_limit:
            raise self._objects.too_large()
        part = self._put(request, body, None)
        return xml(
            f"<CopyPartResult {NAMESPACE}><LastModified>{iso(part.modified)}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag></CopyPartResult>"
        )

    def complete(self, request: Request) -> Response:
        root = parse(request.body)
        wanted = root.findall("{*}Part")
        if not wanted:
            raise malformed()
        try:
            chosen = [
                (int(each.findtext("{*}PartNumber") or ""), (each.findtext("{*}ETag") or "").strip('"'))
                for each in wanted
            ]
        except ValueError as error:
            raise malformed() from error
        with self._objects.lock:
            bucket = self._objects.bucket(request.bucket)
            upload_id = request.query["uploadId"]
            finished = bucket.finished.get(upload_id)
            if (
                self._objects.settings.repeatable_complete
                and finished is not None
                and finished[:2] == (chosen, request.key)
            ):
                return xml(finished[2])
            upload = self._upload(request)
            stored = self._objects.store(
                request, request.key, self._assembled(request, upload, wanted, chosen)
            )
            del bucket.uploads[upload_id]
            document = (
                f"<CompleteMultipartUploadResult {NAMESPACE}><Location>/{request.bucket}/{text_of(request.key)}</Location>"
                f"<Bucket>{request.bucket}</Bucket><Key>{text_of(request.key)}</Key><ETag>&quot;{stored.etag}&quot;</ETag>"
                f"{checksum_elements(stored.checksums, stored.checksum_type)}</CompleteMultipartUploadResult>"
            )
            bucket.finished[upload_id] = (chosen, request.key, document)
        return xml(
            document, headers={name: value for name, value in written(stored).items() if name != "ETag"}
        )

    def abort(self, request: Request) -> Response:
        with self._objects.lock:
            upload = self._upload(request)
            del self._objects.bucket(request.bucket).uploads[upload.upload_id]
        return Response(204)

    def list_parts(self, request: Request) -> Response:
        count = min(number(request.query, "max-parts", 1000), 1000, self._objects.settings.page_size)
        marker = number(request.query, "part-number-marker", 0)
        encoded = encoder(request.query)
        with self._objects.lock:
            upload = self._upload(request)
            parts = [(each, upload.parts[each]) for each in sorted(upload.parts) if each > marker]
        page = parts[:count]
        listed = "".join(
            f"<Part><PartNumber>{each}</PartNumber><LastModified>{iso(part.modified)}</LastModified>"
            f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{len(part.body)}</Size>"
            f"{''.join(f'<Checksum{name.upper()}>{value}</Checksum{name.upper()}>' for name, value in part.checksums.items())}"
            "</Part>"
            for each, part in page
        )
        following = f"<NextPartNumberMarker>{page[-1][0]}</NextPartNumberMarker>" if page else ""
        return xml(
            f"<ListPartsResult {NAMESPACE}><Bucket>{request.bucket}</Bucket><Key>{encoded(request.key)}</Key>"
            f"<UploadId>{upload.upload_id}</UploadId><PartNumberMarker>{marker}</PartNumberMarker>{following}"
            f"<MaxParts>{count}</MaxParts><IsTruncated>{_word(len(parts) > len(page))}</IsTruncated>"
            f"<StorageClass>{upload.headers.get('x-amz-storage-class', 'STANDARD')}</StorageClass>{listed}"
            "</ListPartsResult>"
        )

    def list_uploads(self, request: Request) -> Response:
        query = request.query
        if "delimiter" in query:
            raise S3Error("NotImplemented", 501, "This server lists uploads without a delimiter.")
        count = min(number(query, "max-uploads", 1000), 1000, self._objects.settings.page_size)
        encoded = encoder(query)
        prefix, after, after_id = (
            query.get("prefix", ""),
            query.get("key-marker", ""),
            query.get("upload-id-marker", ""),
        )
        with self._objects.lock:
            known = list(self._objects.bucket(request.bucket).uploads.values())
        found = sorted(
            ((upload.key.encode(), upload.initiated, upload.upload_id), upload)
            for upload in known
            if upload.key.startswith(prefix)
        )
        if after:
            start = next(
                (place for place, each in found if each.upload_id == after_id),
                (after.encode(), float("inf"), ""),
            )
            found = [(place, each) for place, each in found if place > start]
        page = [each for _, each in found[:count]]
        listed = "".join(
            f"<Upload><Key>{encoded(each.key)}</Key><UploadId>{each.upload_id}</UploadId>"
            f"<StorageClass>{each.headers.get('x-amz-storage-class', 'STANDARD')}</StorageClass>"
            f"<Initiated>{iso(each.initiated)}</Initiated></Upload>"
            for each in page
        )
        following = ""
        if len(found) > len(page) and page:
            following = (
                f"<NextKeyMarker>{encoded(page[-1].key)}</NextKeyMarker>"
                f"<NextUploadIdMarker>{page[-1].upload_id}</NextUploadIdMarker>"
            )
        coding = "<EncodingType>url</EncodingType>" if "encoding-type" in query else ""
        return xml(
            f"<ListMultipartUploadsResult {NAMESPACE}><Bucket>{request.bucket}</Bucket><KeyMarker>{encoded(after)}</KeyMarker>"
            f"<UploadIdMarker>{text_of(after_id)}</UploadIdMarker>{following}<Prefix>{encoded(prefix)}</Prefix>{coding}"
            f"<MaxUploads>{count}</MaxUploads><IsTruncated>{_word(bool(following))}</IsTruncated>{listed}"
            "</ListMultipartUploadsResult>"
        )

    def _upload(self, request: Request) -> Upload:
        upload = self._objects.bucket(request.bucket).uploads.get(request.query["uploadId"])
        if upload is None or upload.key != request.key:
            message = (
                "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted "
                "or completed."
            )
            raise S3Error("NoSuchUpload", 404, message, UploadId=request.query["uploadId"])
        return upload

    def _put(self, request: Request, body: bytes, checksums: dict[str, str] | None) -> Part:
        """Store a part; None for *checksums* has the server reckon them."""
        place = number(request.query, "partNumber", 0)
        if not 1 <= place <= PARTS:
            message = f"Part number must be an integer between 1 and {PARTS}, inclusive"
            raise S3Error("InvalidArgument", 400, message, ArgumentName="partNumber", ArgumentValue=place)
        etag = md5(body)
        with self._objects.lock:
            upload = self._upload(request)
            wanted = upload.algorithm
            if wanted is None and self._objects.settings.unannounced_checksums:
                checksums = {}
            given = next(iter(checksums), None) if checksums is not None else wanted
            # A part without a checksum is taken where the whole object has one; the server reckons it.
            if given != wanted and not (given is None and upload.checksum_type == FULL_OBJECT):
                message = "Checksum Type mismatch occurred, expected checksum Type: "
                raise S3Error(
                    "InvalidRequest",
                    400,
                    f"{message}{wanted or 'null'}, actual checksum Type: {given or 'null'}",
                )
            if wanted is not None and not checksums:
                checksums = {wanted: checksum(wanted, body)}
            part = Part(body, etag, self._objects.clock(), checksums or {})
            upload.parts[place] = part
        return part

    def _assembled(
        self, request: Request, upload: Upload, wanted: list[ET.Element], chosen: list[tuple[int, str]]
    ) -> Stored:
        numbers = [place for place, _ in chosen]
        if any(after <= before for before, after in pairwise(numbers)):
            message = "The list of parts was not in ascending order. The parts list must be specified in order by part number."
            raise S3Error("InvalidPartOrder", 400, message, UploadId=upload.upload_id)
        parts = [
            self._chosen(upload, place, etag, element)
            for (place, etag), element in zip(chosen, wanted, strict=True)
        ]
        for place, part in zip(numbers[:-1], parts, strict=False):
            if len(part.body) < self._objects.settings.minimum_part:
                raise S3Error(
                    "EntityTooSmall",
                    400,
                    "Your proposed upload is smaller than the minimum allowed size",
                    ProposedSize=len(part.body),
                    MinSizeAllowed=self._objects.settings.minimum_part,
                    PartNumber=place,
                    ETag=part.etag,
                )
        body = b"".join(part.body for part in parts)
        size = request.headers.get("x-amz-mp-object-size")
        if size is not None and size != str(len(body)):
            message = "The provided 'x-amz-mp-object-size' header does not match what was computed."
            raise S3Error("InvalidRequest", 400, message)
        checksums: dict[str, str] = {}
        if upload.algorithm is not None:
            whole = upload.checksum_type == FULL_OBJECT
            checksums[upload.algorithm] = (
                checksum(upload.algorithm, body) if whole else composite(upload.algorithm, parts)
            )
        for algorithm, value in request.checksums.items():
            if checksums.get(algorithm) != value:
                message = f"The {algorithm.upper()} you specified did not match the calculated checksum."
                raise S3Error("BadDigest", 400, message)
        digests = b"".join(bytes.fromhex(part.etag) for part in parts)
        etag = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
        return Stored(body, etag, self._objects.clock(), upload.headers, checksums, upload.checksum_type)

    @staticmethod
    def _chosen(upload: Upload, place: int, etag: str, element: ET.Element) -> Part:
        part = upload.parts.get(place)
        invalid = S3Error(
            "InvalidPart",
            400,
            "One or more of the specified parts could not be found. The part may not have been uploaded, or the "
            "specified entity tag may not match the part's entity tag.",
            UploadId=upload.upload_id,
            PartNumber=place,
            ETag=etag,
        )
        if part is None or part.etag != etag:
            raise invalid
        if upload.algorithm is not None:
            given = element.findtext(f"{{*}}Checksum{upload.algorithm.upper()}")
            if given is None and upload.checksum_type == COMPOSITE:
                message = (
                    f"The upload was created using a {upload.algorithm} checksum. The complete request must include the "
                    f"checksum for each part. It was missing for part {place} in the request."
                )
                raise S3Error("InvalidRequest", 400, message)
            if given is not None and base64.b64decode(given) != base64.b64decode(
                part.checksums[upload.algorithm]
            ):
                raise invalid
        return part


def _word(value: bool) -> str:
    return "true" if value else "false"
