"""Copies an object of any size inside the service."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from storage_backend.backends.s3 import checksums
from storage_backend.backends.s3.destination import Destination
from storage_backend.backends.s3.errors import is_refusal
from storage_backend.backends.s3.object_head import ObjectHead, http_date
from storage_backend.backends.s3.parallel import ParallelTasks
from storage_backend.backends.s3.settings import part_size
from storage_backend.backends.s3.xml_documents import unexpected
from storage_backend.threads import grace, run_within_grace

logger = logging.getLogger(__name__)

# Errors for a source of more than 5 GiB ("CopyObject", Amazon S3 API Reference).
_TOO_LARGE = frozenset({"EntityTooLarge", "InvalidArgument", "InvalidRequest"})


def copy(
    destination: Destination, source: str, read_head: Callable[[], ObjectHead], head: ObjectHead | None = None
) -> None:
    """Try one CopyObject; if the service refuses it as too large, copy in parts.

    Args:
        destination: the copy gets its parameters, and all other metadata of the source.
        source: "bucket/key".
        read_head: returns the metadata of the source.
        head: the source must still have its ETag; its metadata is not read again.
    """
    pinned = _pinned(head)
    try:
        destination.router.requests.copy(destination.key, source, **destination.parameters, **pinned)
    except Exception as error:
        if not is_refusal(error, *_TOO_LARGE):
            raise
        head = head or read_head()
        # Other services have lower limits than Amazon, but an error for an object that a PUT can store has another cause.
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
            except Exception as error:  # noqa: BLE001 - the caller gets the error that caused the abort
                if not is_refusal(error, "NoSuchUpload"):
                    logger.warning(
                        "an unfinished upload of %r could not be aborted: %s", destination.key, error
                    )

        if grace() is None:
            abort()
        else:
            run_within_grace(abort, "storage-backend-s3-abort")
        raise


def _carried(destination: Destination, source: str, head: ObjectHead) -> dict[str, Any]:
    """The metadata that CopyObject would keep, and the storage class."""
    carried: dict[str, Any] = {"Metadata": dict(head.metadata), **head.carried}
    if head.content_type is not None:
        carried["ContentType"] = head.content_type
    if "Expires" in carried and http_date(carried["Expires"]) is None:
        logger.warning(
            "the copy %r has no Expires header: %r is not a date", destination.key, carried.pop("Expires")
        )
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
        if not is_refusal(error, 400, 403, 404, 405, 501):
            raise
        # The service does not support tags, or reading them is denied. Most objects have none.
        if is_refusal(error, 403):
            logger.warning("the copy %r has no tags: reading those of its source is denied", destination.key)
        return {}


def _complete(destination: Destination, upload_id: str, parts: list[dict[str, Any]], size: int) -> None:
    try:
        destination.router.boto3.complete_upload(destination.key, upload_id, parts)
    except Exception as error:
        # If its response was lost, the repeated request finds that the upload no longer exists.
        etags = [str(part["ETag"]).strip('"') for part in parts]
        if not is_refusal(error, "NoSuchUpload") or not all(
            re.fullmatch("[0-9a-f]{32}", etag) for etag in etags
        ):
            raise
        stored = destination.router.requests.head(destination.key)
        expected = checksums.multipart_etag([bytes.fromhex(etag) for etag in etags])
        if (stored.size, stored.etag) != (size, expected):
            raise


def _pinned(head: ObjectHead | None) -> dict[str, str]:
    return {} if head is None or head.etag is None else {"CopySourceIfMatch": f'"{head.etag}"'}


def _part(
    destination: Destination, source: str, head: ObjectHead, upload_id: str, part: tuple[int, int, int]
) -> dict[str, Any]:
    number, start, end = part
    copied = destination.router.requests.copy_part(
        destination.key,
        source,
        UploadId=upload_id,
        PartNumber=number,
        CopySourceRange=f"bytes={start}-{end - 1}",
        **_pinned(head),
    )
    if copied.etag is None:
        raise unexpected("a part with a strong ETag", "none")
    return {"PartNumber": number, "ETag": f'"{copied.etag}"'}
