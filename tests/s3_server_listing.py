"""The S3 server's pages of objects."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from operator import itemgetter

from tests.s3_server_forms import NAMESPACE, encoder, iso, number
from tests.s3_server_objects import Objects
from tests.s3_server_store import Bucket, Stored
from tests.s3_server_wire import Request, Response, S3Error, text_of, xml

_first = itemgetter(0)


class Listing:
    """ListObjectsV2."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def list_objects(self, request: Request) -> Response:
        query = request.query
        encoded = encoder(query)
        limit = number(query, "max-keys", 1000)
        count = min(limit, 1000, self._objects.settings.page_size)
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        start = query.get("start-after", "")
        with self._objects.lock:
            bucket = self._objects.bucket(request.bucket)
            order = bucket.order()
            if "continuation-token" in query:
                position = _resumed(order, query["continuation-token"])
            else:
                position = bisect_right(order, start.encode(), key=_first) if start else 0
            position = max(position, bisect_left(order, prefix.encode(), key=_first))
            entries, common, token = self._page(
                bucket, position, prefix, delimiter, count=count, encoded=encoded
            )
        head = f"<Name>{request.bucket}</Name><Prefix>{encoded(prefix)}</Prefix>"
        if delimiter:
            head += f"<Delimiter>{encoded(delimiter)}</Delimiter>"
        if start:
            head += f"<StartAfter>{encoded(start)}</StartAfter>"
        if "encoding-type" in query:
            head += "<EncodingType>url</EncodingType>"
        if "continuation-token" in query:
            head += f"<ContinuationToken>{text_of(query['continuation-token'])}</ContinuationToken>"
        if token:
            head += f"<NextContinuationToken>{token}</NextContinuationToken>"
        head += f"<KeyCount>{len(entries) + len(common)}</KeyCount><MaxKeys>{min(limit, 1000)}</MaxKeys>"
        head += f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>"
        prefixes = "".join(
            f"<CommonPrefixes><Prefix>{encoded(each)}</Prefix></CommonPrefixes>" for each in common
        )
        return xml(f"<ListBucketResult {NAMESPACE}>{head}{''.join(entries)}{prefixes}</ListBucketResult>")

    @staticmethod
    def _page(
        bucket: Bucket,
        position: int,
        prefix: str,
        delimiter: str,
        *,
        count: int,
        encoded: Callable[[str], str],
    ) -> tuple[list[str], list[str], str]:
        """The entries, common prefixes and continuation token ("" at the end) from *position* on."""
        order = bucket.order()
        entries: list[str] = []
        common: list[str] = []
        last = b""
        stem = prefix.encode()
        while position < len(order) and count:
            raw, key = order[position]
            if not raw.startswith(stem):
                break
            if len(entries) + len(common) == count:
                return entries, common, base64.b64encode(last).decode()
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            if at >= 0:
                common.append(key[: at + len(delimiter)])
                last = b"p" + common[-1].encode()
                position = _past(order, common[-1].encode())
                continue
            stored = bucket.current(key)
            if stored is not None:
                entries.append(_entry(encoded(key), stored))
            last = b"k" + raw
            position += 1
        return entries, common, ""


def _entry(key: str, stored: Stored) -> str:
    sums = "".join(f"<ChecksumAlgorithm>{each.upper()}</ChecksumAlgorithm>" for each in stored.checksums)
    if sums:
        sums += f"<ChecksumType>{stored.checksum_type}</ChecksumType>"
    return (
        f"<Contents><Key>{key}</Key><LastModified>{iso(stored.modified)}</LastModified>"
        f"<ETag>&quot;{stored.etag}&quot;</ETag>{sums}<Size>{len(stored.body)}</Size>"
        f"<StorageClass>{stored.headers.get('x-amz-storage-class', 'STANDARD')}</StorageClass></Contents>"
    )


def _past(order: list[tuple[bytes, str]], prefix: bytes) -> int:
    """The position after all keys that begin with *prefix*; UTF-8 has no byte 0xff."""
    return bisect_left(order, prefix[:-1] + bytes([prefix[-1] + 1]), key=_first)


def _resumed(order: list[tuple[bytes, str]], token: str) -> int:
    try:
        last = base64.b64decode(token, validate=True)
    except (binascii.Error, ValueError):
        last = b""
    if last[:1] not in {b"k", b"p"}:
        message = "The continuation token provided is incorrect"
        raise S3Error("InvalidArgument", 400, message, ArgumentName="continuation-token")
    return _past(order, last[1:]) if last[:1] == b"p" else bisect_right(order, last[1:], key=_first)
