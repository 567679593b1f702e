"""Copying: from key to key inside the service, of any size."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from storage_backend.backends.s3 import digests
from storage_backend.backends.s3.calls import Facts
from storage_backend.backends.s3.documents import http_date, unexpected
from storage_backend.backends.s3.errors import refusal_of
from storage_backend.backends.s3.settings import part_size
from storage_backend.backends.s3.target import Target
from storage_backend.backends.s3.workers import Answers
from storage_backend.threads import attend, patience

logger = logging.getLogger(__name__)

# How S3 and others refuse a source of more than 5 GiB ("CopyObject", Amazon S3 API Reference).
_TOO_LARGE = frozenset({"EntityTooLarge", "InvalidArgument", "InvalidRequest"})


def copy(target: Target, source: str, look: Callable[[], Facts], if_match: str | None = None) -> None:
    """Copy *source* to the target's key, by one request if it is small enough, else in parts.

    Args:
        target: where to. Its parameters are given to the copy; all others come from the source.
        source: "bucket/key".
        look: gives the facts of the source.
        if_match: the etag that the source must have.
    """
    pinned = {} if if_match is None else {"CopySourceIfMatch": f'"{if_match}"'}
    try:
        target.service.calls.copy(target.key, source, **target.parameters, **pinned)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None or refusal.code not in _TOO_LARGE:
            raise
        facts = look()
        if facts.size is None or facts.size <= target.settings.multipart_threshold:
            raise
        _in_parts(target, source, facts)


def _in_parts(target: Target, source: str, facts: Facts) -> None:
    assert facts.size is not None
    rare = target.service.rare
    upload_id = rare.create_upload(target.key, **_carried(target, source, facts) | dict(target.parameters))
    answers: Answers[tuple[int, int, int], dict[str, Any]] = Answers(
        target.workers, lambda part: _part(target, source, facts, upload_id, part)
    )
    length = part_size(target.settings, facts.size)
    parts: list[dict[str, Any]] = []

    def take() -> None:
        _, part, error = answers.take()
        if error is not None:
            raise error
        parts.append(part)

    try:
        for number, start in enumerate(range(0, facts.size, length), 1):
            while answers.pending >= target.settings.max_concurrency:
                take()
            answers.ask((number, start, min(start + length, facts.size)))
        while answers.pending:
            take()
        parts.sort(key=lambda part: int(part["PartNumber"]))
        _complete(target, upload_id, parts, facts.size)
    except BaseException:

        def abort() -> None:
            answers.settle()
            try:
                rare.abort_upload(target.key, upload_id)
            except Exception as error:  # noqa: BLE001 - the cause of the abort is what the caller must hear of
                if not _is_gone(error):
                    logger.warning("an unfinished upload of %r stays: %s", target.key, error)

        if patience() is None:
            abort()
        else:
            attend(abort, "storage-backend-s3-abort")
        raise


def _carried(target: Target, source: str, facts: Facts) -> dict[str, Any]:
    """What a plain copy would bring along by itself, and the storage class."""
    carried: dict[str, Any] = {"Metadata": dict(facts.metadata), **facts.carried}
    if facts.content_type is not None:
        carried["ContentType"] = facts.content_type
    if "Expires" in carried and http_date(carried["Expires"]) is None:
        logger.warning("the copy %r has no Expires: %r is no date", target.key, carried.pop("Expires"))
    tags = _tags(target, source)
    if tags:
        carried["Tagging"] = urlencode(tags)
    return carried


def _tags(target: Target, source: str) -> dict[str, str]:
    if not target.service.explains:  # a mock expects what it expects
        return {}
    bucket, _, key = source.partition("/")
    try:
        return target.service.rare.tags(bucket, key)
    except Exception as error:
        refusal = refusal_of(error)
        if refusal is None or refusal.status not in {400, 403, 404, 405, 501}:
            raise
        # A service without tags, or no right to read them: most objects have none.
        if refusal.status == 403:
            logger.warning("the copy %r has no tags: those of its source may not be read", target.key)
        return {}


def _complete(target: Target, upload_id: str, parts: list[dict[str, Any]], size: int) -> None:
    try:
        target.service.rare.complete_upload(target.key, upload_id, parts)
    except Exception as error:
        # If its answer was lost and it is asked again, some services know the upload no more.
        etags = [str(part["ETag"]).strip('"') for part in parts]
        if not _is_gone(error) or not all(re.fullmatch("[0-9a-f]{32}", etag) for etag in etags):
            raise
        landed = target.service.calls.head(target.key)
        expected = digests.multipart_etag([bytes.fromhex(etag) for etag in etags])
        if (landed.size, landed.etag) != (size, expected):
            raise


def _is_gone(error: Exception) -> bool:
    refusal = refusal_of(error)
    return refusal is not None and refusal.code == "NoSuchUpload"


def _part(
    target: Target, source: str, facts: Facts, upload_id: str, part: tuple[int, int, int]
) -> dict[str, Any]:
    number, start, end = part
    pinned = {} if facts.etag is None else {"CopySourceIfMatch": f'"{facts.etag}"'}
    copied = target.service.calls.copy_part(
        target.key,
        source,
        UploadId=upload_id,
        PartNumber=number,
        CopySourceRange=f"bytes={start}-{end - 1}",
        **pinned,
    )
    if copied.etag is None:
        raise unexpected("a part with an ETag that is not weak", "none")
    return {"PartNumber": number, "ETag": f'"{copied.etag}"'}
