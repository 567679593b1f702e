"""Wire: the frequent requests, signed and sent by ourselves over connections that are kept alive."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar
from urllib.parse import quote

from typing_extensions import Buffer

from storage_backend.backends.s3 import answers, retries
from storage_backend.backends.s3.answers import Answer
from storage_backend.backends.s3.calls import Facts, Got
from storage_backend.backends.s3.digests import Running
from storage_backend.backends.s3.documents import (
    DocumentError,
    Page,
    Refused,
    RefusedInside,
    delete_request,
    etag_of,
    parse_copied,
    parse_deleted,
    parse_page,
)
from storage_backend.backends.s3.errors import (
    DAMAGED,
    STALE_CREDENTIALS,
    WRONG_CLOCK,
    RefusalError,
    UnreachableError,
    is_transient,
)
from storage_backend.backends.s3.http import FileChangedError, FilePart, StaleError
from storage_backend.backends.s3.mending import Skew
from storage_backend.backends.s3.pool import Pool
from storage_backend.backends.s3.settings import Settings
from storage_backend.backends.s3.signing import UNSIGNED, Keys, Signer, encode_query, quote_key

T = TypeVar("T")

USER_AGENT = "storage-backend"
DAMAGED_TRIES = 3  # of what comes damaged at the other end; more often it is no chance
SIGNED_MOST = 1 << 20  # bytes; a longer body is signed only by its checksum, one of the signed headers
_EMPTY = hashlib.sha256(b"").hexdigest()

# boto3's parameters as HTTP has them ("Actions", Amazon S3 API Reference).
_HEADERS: Mapping[str, str] = {
    "ACL": "x-amz-acl",
    "ChecksumCRC32": "x-amz-checksum-crc32",
    "ChecksumMode": "x-amz-checksum-mode",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ContentMD5": "content-md5",
    "ContentType": "content-type",
    "CopySourceIfMatch": "x-amz-copy-source-if-match",
    "CopySourceRange": "x-amz-copy-source-range",
    "IfMatch": "if-match",
    "IfNoneMatch": "if-none-match",
    "Range": "range",
    "RequestPayer": "x-amz-request-payer",
    "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    "ServerSideEncryption": "x-amz-server-side-encryption",
    "StorageClass": "x-amz-storage-class",
}
_QUERY: Mapping[str, str] = {"PartNumber": "partNumber", "UploadId": "uploadId", "VersionId": "versionId"}
_META = "x-amz-meta-"


@dataclass(frozen=True)
class Place:
    """Where requests for the bucket go, and how they are signed.

    Attributes:
        host: for the header.
        root: the path before a key: "/bucket/", or "/" where the host names the bucket.
        region: that requests are signed for; "" if they are not.
        signer: None for anonymous requests.
        keys: the credentials of this moment.
        refresh: gets new ones; whether they are others.
        pool: connections to the host.
        tls: whether they are encrypted.
        emit: gives an answer in place of the network's, as moto does; None where nobody asked to.
        origin: the URL before the path.
    """

    host: str
    root: str
    region: str
    signer: Signer | None
    keys: Callable[[], Keys]
    refresh: Callable[[], bool]
    pool: Pool
    tls: bool
    emit: Callable[..., Any] | None
    origin: str


class Wire:
    """The `Calls` of a plain client, several times faster than its own.

    Args:
        place: where to begin.
        settings: of the storage.
        moved: gives the place for the region that an answer named; None if that is no news.
        skew: of the service's clock.
    """

    def __init__(
        self, place: Place, settings: Settings, moved: Callable[[str], Place | None], skew: Skew
    ) -> None:
        self._place = place
        self._settings = settings
        self._moved = moved
        self._skew = skew
        self._common = {} if settings.request_payer is None else {"RequestPayer": settings.request_payer}

    def close(self) -> None:
        """Close the idle connections."""
        self._place.pool.close()

    def get(self, key: str, **parameters: Any) -> Got:
        """GetObject."""
        ranged = "Range" in parameters
        if not ranged:
            parameters["ChecksumMode"] = "ENABLED"
        take = partial(answers.begun, ranged=ranged)
        answer, start, whole = self._send(take, "GetObject", "GET", key, parameters)
        if whole is None and parameters.get("Range") != answers.FIRST:
            whole = self._told(key, parameters, answer)
        facts = answers.facts_of(answer.headers, whole, whole="content-range" not in answer.headers)
        return Got(facts, start, answer.length, answer)

    def head(self, key: str, **parameters: Any) -> Facts:
        """HeadObject."""
        return self._send(answers.looked, "HeadObject", "HEAD", key, parameters)

    def put(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> Facts:
        """PutObject."""
        return self._send(answers.stored, "PutObject", "PUT", key, parameters, body)

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> Facts:
        """UploadPart."""
        return self._send(answers.stored, "UploadPart", "PUT", key, parameters, body)

    def delete(self, key: str, **parameters: Any) -> None:
        """DeleteObject."""
        self._send(answers.removed, "DeleteObject", "DELETE", key, parameters)

    def delete_batch(self, keys: Sequence[str]) -> dict[str, Refused]:
        """DeleteObjects."""
        body = delete_request(keys)
        md5 = Running("md5")
        md5.update(body)
        return self._send(
            answers.document(parse_deleted),
            "DeleteObjects",
            "POST",
            None,
            {"ContentMD5": md5.base64("md5")},
            body,
            [("delete", "")],
        )

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> Page:
        """ListObjectsV2. Keys may have what XML cannot, so they are asked for percent-encoded."""
        query = [("encoding-type", "url"), ("list-type", "2"), ("prefix", prefix)]
        if delimiter:
            query.append(("delimiter", delimiter))
        if token is not None:
            query.append(("continuation-token", token))
        if limit is not None:
            query.append(("max-keys", str(limit)))
        return self._send(answers.document(parse_page), "ListObjectsV2", "GET", None, {}, b"", query)

    def copy(self, key: str, source: str, **parameters: Any) -> Facts:
        """CopyObject."""
        return self._copied("CopyObject", key, source, parameters)

    def copy_part(self, key: str, source: str, **parameters: Any) -> Facts:
        """UploadPartCopy."""
        return self._copied("UploadPartCopy", key, source, parameters)

    def _told(self, key: str, parameters: Mapping[str, Any], answer: Answer) -> int | None:
        same = {name: parameters[name] for name in _QUERY if name in parameters}
        try:
            return answers.told(
                etag_of(answer.headers.get("etag")),
                lambda: self.head(key, **same),
                lambda: self.get(key, Range=answers.FIRST, **same),
            )
        except BaseException:
            answer.close()
            raise

    def _copied(self, operation: str, key: str, source: str, parameters: Mapping[str, Any]) -> Facts:
        extra = {"x-amz-copy-source": quote(f"/{source}", safe="/-_.~")}
        take = answers.document(parse_copied)
        return Facts(etag=self._send(take, operation, "PUT", key, parameters, b"", (), extra))

    def _send(  # noqa: PLR0917 - the parts of a request in the order in which they are sent
        self,
        take: Callable[[Answer], T],
        operation: str,
        method: str,
        key: str | None,
        parameters: Mapping[str, Any],
        body: bytes | memoryview | FilePart = b"",
        query: Sequence[tuple[str, str]] = (),
        extra: Mapping[str, str] | None = None,
    ) -> T:
        """Send the request until it succeeds, as often as its failures allow.

        Args:
            take: reads a success, which may turn out to be none (a 200 with an error in it); what it gives is returned.
            operation: its name in the API.
            method: of HTTP.
            key: of the object; None for a request about the bucket.
            parameters: in boto3's names.
            body: can be sent again.
            query: further pairs, unencoded.
            extra: further headers.

        Raises:
            RefusalError: S3 refuses.
            UnreachableError: the network fails.
        """
        headers, pairs = self._translated(parameters, extra)
        tail = encode_query([*query, *pairs]) if query or pairs else ""
        repaired: set[str] = set()
        tries = stale = 0
        while True:
            tries += 1
            place = self._place
            try:
                answer = self._once(place, operation, method, key, tail, dict(headers), body)
                if answer.status < 300:
                    return take(answer)
                refusal = answers.refusal(answer, method)
            except StaleError as error:
                # The server had closed the connection before the request came: it costs no try.
                stale += 1
                if stale <= self._settings.max_concurrency + 1:
                    tries -= 1
                    continue
                raise UnreachableError(error, tries) from error
            except RefusedInside as error:
                refusal = RefusalError.inside(error.refused, 500)
            except FileChangedError:
                raise
            except DocumentError as error:
                # A body in chunks that somebody on the way cut short looks whole, and a proxy may speak for the service.
                if tries >= min(DAMAGED_TRIES, self._settings.attempts):
                    error.attempts = tries
                    raise
                self._settings.sleep(retries.pause(tries))
                continue
            except OSError as error:
                if not is_passing(error) or tries >= self._settings.attempts:
                    raise UnreachableError(error, tries) from error
                self._settings.sleep(retries.pause(tries))
                continue
            # A connection that looked closed may have delivered the request all the same.
            refusal.attempts = tries + stale
            if self._repaired(refusal, repaired, place):
                continue
            again = is_transient(refusal) or (refusal.code in DAMAGED and tries < DAMAGED_TRIES)
            too_long = (refusal.retry_after or 0) > retries.PATIENCE
            if not again or too_long or tries >= self._settings.attempts:
                try:
                    raise refusal
                finally:
                    del refusal  # its traceback leads to this frame
            self._settings.sleep(retries.pause(tries, refusal.retry_after))

    def _once(  # noqa: PLR0917 - as _send
        self,
        place: Place,
        operation: str,
        method: str,
        key: str | None,
        query: str,
        headers: dict[str, str],
        body: bytes | memoryview | FilePart,
    ) -> Answer:
        path = place.root + quote_key(key) if key is not None else place.root.removesuffix("/") or "/"
        headers["host"] = place.host
        if place.signer is not None:
            place.signer.sign(
                method,
                path,
                query,
                headers,
                place.keys(),
                self._settings.clock() + self._skew.seconds,
                _payload(body, headers, tls=place.tls),
            )
        headers["user-agent"] = USER_AGENT
        target = f"{path}?{query}" if query else path
        if place.emit is not None:
            canned = _canned(place, operation, method, target, headers, body)
            if canned is not None:
                return canned
        return place.pool.exchange(method, target, headers, body)

    def _translated(
        self, parameters: Mapping[str, Any], extra: Mapping[str, str] | None
    ) -> tuple[dict[str, str], list[tuple[str, str]]]:
        headers = dict(extra) if extra else {}
        pairs = []
        for name, value in (self._common | dict(parameters)).items():
            if name in _QUERY:
                pairs.append((_QUERY[name], str(value)))
            elif name == "Metadata":
                headers.update({_META + key: text for key, text in value.items()})
            else:
                headers[_HEADERS[name]] = value
        return headers, pairs

    def _repaired(self, refusal: RefusalError, repaired: set[str], place: Place) -> bool:
        """Whether what was refused at *place* can be put right at once: the region, the clock, the credentials; each once."""
        if refusal.region and "region" not in repaired and _is_elsewhere(refusal, place):
            repaired.add("region")
            if refusal.region == self._place.region:  # which another thread has found out meanwhile
                return True
            moved = self._moved(refusal.region)
            if moved is not None:
                self._place = moved
            return moved is not None
        if refusal.code in WRONG_CLOCK and refusal.server_time is not None and "clock" not in repaired:
            repaired.add("clock")
            self._skew.seconds = refusal.server_time - self._settings.clock()
            return True
        if refusal.code in STALE_CREDENTIALS and "credentials" not in repaired:
            repaired.add("credentials")
            return place.refresh()
        return False


def is_passing(error: OSError) -> bool:
    """Whether a failure of the network may be over at the next try."""
    import ssl

    return not isinstance(error, ssl.SSLCertVerificationError)


def _is_elsewhere(refusal: RefusalError, place: Place) -> bool:
    if place.signer is None or refusal.region == place.region:
        return False
    return refusal.status in {301, 307, 400, 403}


def _payload(body: bytes | memoryview | FilePart, headers: Mapping[str, str], *, tls: bool) -> str:
    """What the signature says of the body. Its checksum, a signed header, binds a long one as well."""
    if isinstance(body, FilePart):
        size = body.size
    else:
        size = len(body)
        if not size:
            return _EMPTY
    digest = headers.get("x-amz-checksum-sha256")
    if digest is not None:
        return base64.b64decode(digest).hex()
    bound = "content-md5" in headers or tls
    if isinstance(body, FilePart) or (size > SIGNED_MOST and bound):
        return UNSIGNED
    return UNSIGNED if tls else hashlib.sha256(body, usedforsecurity=False).hexdigest()


def _canned(  # noqa: PLR0917 - as _send
    place: Place,
    operation: str,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes | memoryview | FilePart,
) -> Answer | None:
    """The answer of a "before-send" handler, if any gives one."""
    from botocore.awsrequest import AWSPreparedRequest, HeadersDict

    content = os.pread(body.fd, body.size, body.offset) if isinstance(body, FilePart) else bytes(body)
    sent = HeadersDict({**headers, "content-length": str(len(content))} if content else dict(headers))
    request = AWSPreparedRequest(method, place.origin + target, sent, content or None, stream_output=True)
    assert place.emit is not None
    # moto's objects are not made for threads, which here are our own: several of a batch at once would break them.
    with _one_at_a_time():
        _, answer = place.emit(f"before-send.s3.{operation}", request=request)
        return None if answer is None else _Canned(answer)


@cache
def _one_at_a_time() -> threading.RLock:
    """Held through a fork too: moto's own locks, which another thread may hold, would be held in the child for ever."""
    lock = threading.RLock()
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class _Canned:
    """An AWSResponse of botocore, with what a `http.Response` has."""

    def __init__(self, answer: Any) -> None:
        self.status = int(answer.status_code)
        self.headers = {str(name).lower(): str(value) for name, value in answer.headers.items()}
        content = b"".join(answer.raw.stream())
        self.length: int | None = len(content)
        self._content = io.BytesIO(content)

    def read(self, size: int = -1, /) -> bytes:
        return self._content.read(size)

    def readinto(self, buffer: Buffer, /) -> int:
        return self._content.readinto(buffer)

    def drain(self, at_most: int) -> bool:  # noqa: ARG002 - as a Response
        return True

    def close(self) -> None:
        pass
