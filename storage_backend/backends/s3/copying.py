"""Copies from key to key inside the service, of any size."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from storage_backend.backends.s3 import checksums
from storage_backend.backends.s3.destination import Destination
from storage_backend.backends.s3.errors import response_error_of
from storage_backend.backends.s3.object_head import ObjectHead, http_date
from storage_backend.backends.s3.parallel import ParallelTasks
from storage_backend.backends.s3.settings import part_size
from storage_backend.backends.s3.xml_documents import unexpected
from storage_backend.threads import grace, run_within_grace

logger = logging.getLogger(__name__)

# The refusals of a source of more than 5 GiB ("CopyObject", Amazon S3 API Reference).
_TOO_LARGE = frozenset({"EntityTooLarge", "InvalidArgument", "InvalidRequest"})


def copy(
    destination: Destination, source: str, look: Callable[[], ObjectHead], if_match: str | None = None
) -> None:
    """Copy *source* to the destination's key, by one request if it is small enough, else in parts.

    Args:
        destination: of the copy. Its parameters are given to the copy; all others come from the source.
        source: "bucket/key".
        look: returns the metadata of the source.
        if_match: the etag that the source must have.
    """
    pinned = {} if if_match is None else {"CopySourceIfMatch": f'"{if_match}"'}
    try:
        destination.router.requests.copy(destination.key, source, **destination.parameters, **pinned)
    except Exception as error:
        refused = response_error_of(error)
        if refused is None or refused.code not in _TOO_LARGE:
            raise
        head = look()
        if head.size is None or head.size <= destination.settings.multipart_threshold:
            raise
        _in_parts(destination, source, head)


def _in_parts(destination: Destination, source: str, head: ObjectHead) -> None:
    assert head.size is not None
    boto3 = destination.router.boto3
    upload_id = boto3.create_upload(
        destination.key, **_carried(destination, source, head) | dict(destination.parameters)
    )
    tasks: ParallelTasks[tuple[int, int, int], dict[str, Any]] = ParallelTasks(
        destination.workers, lambda part: _part(destination, source, head, upload_id, part)
    )
    length = part_size(destination.settings, head.size)
    spans = (
        (number, start, min(start + length, head.size))
        for number, start in enumerate(range(0, head.size, length), 1)
    )
    parts: list[dict[str, Any]] = []
    try:
        for _, part, error in tasks.map(spans, lambda: destination.settings.max_concurrency):
            if error is not None:
                raise error
            parts.append(part)
        parts.sort(key=lambda part: int(part["PartNumber"]))
        _complete(destination, upload_id, parts, head.size)
    except BaseException:

        def abort() -> None:
            tasks.stop()
            try:
                boto3.abort_upload(destination.key, upload_id)
            except Exception as error:  # noqa: BLE001 - the cause of the abort is what the caller must hear of
                if not _is_gone(error):
                    logger.warning("an unfinished upload of %r stays: %s", destination.key, error)

        if grace() is None:
            abort()
        else:
            run_within_grace(abort, "storage-backend-s3-abort")
        raise


def _carried(destination: Destination, source: str, head: ObjectHead) -> dict[str, Any]:
    """What CopyObject would keep by itself, and the storage class."""
    carried: dict[str, Any] = {"Metadata": dict(head.metadata), **head.carried}
    if head.content_type is not None:
        carried["ContentType"] = head.content_type
    if "Expires" in carried and http_date(carried["Expires"]) is None:
        logger.warning("the copy %r has no Expires: %r is no date", destination.key, carried.pop("Expires"))
    tags = _tags(destination, source)
    if tags:
        carried["Tagging"] = urlencode(tags)
    return carried


def _tags(destination: Destination, source: str) -> dict[str, str]:
    if not destination.router.requests.is_real_service:  # a mock expects certain requests
        return {}
    bucket, _, key = source.partition("/")
    try:
        return destination.router.boto3.tags(bucket, key)
    except Exception as error:
        refused = response_error_of(error)
        if refused is None or refused.status not in {400, 403, 404, 405, 501}:
            raise
        # The service has no tags, or reading them is denied: most objects have none.
        if refused.status == 403:
            logger.warning("the copy %r has no tags: those of its source may not be read", destination.key)
        return {}


def _complete(destination: Destination, upload_id: str, parts: list[dict[str, Any]], size: int) -> None:
    try:
        destination.router.boto3.complete_upload(destination.key, upload_id, parts)
    except Exception as error:
        # If its response was lost, the repeated request may find no upload any more.
        etags = [str(part["ETag"]).strip('"') for part in parts]
        if not _is_gone(error) or not all(re.fullmatch("[0-9a-f]{32}", etag) for etag in etags):
            raise
        landed = destination.router.requests.head(destination.key)
        expected = checksums.multipart_etag([bytes.fromhex(etag) for etag in etags])
        if (landed.size, landed.etag) != (size, expected):
            raise


def _is_gone(error: Exception) -> bool:
    refused = response_error_of(error)
    return refused is not None and refused.code == "NoSuchUpload"


def _part(
    destination: Destination, source: str, head: ObjectHead, upload_id: str, part: tuple[int, int, int]
) -> dict[str, Any]:
    number, start, end = part
    pinned = {} if head.etag is None else {"CopySourceIfMatch": f'"{head.etag}"'}
    copied = destination.router.requests.copy_part(
        destination.key,
        source,
        UploadId=upload_id,
        PartNumber=number,
        CopySourceRange=f"bytes={start}-{end - 1}",
        **pinned,
    )
    if copied.etag is None:
        raise unexpected("a part with an ETag that is not weak", "none")
    return {"PartNumber": number, "ETag": f'"{copied.etag}"'}
