"""SignedRequests: the frequent requests, signed and sent by our own HTTP client over persistent connections."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from storage_backend.backends.s3 import responses, retries
from storage_backend.backends.s3.boto3_handlers import ClockSkew
from storage_backend.backends.s3.endpoint import BucketEndpoint
from storage_backend.backends.s3.errors import (
    STALE_CREDENTIALS,
    WRONG_CLOCK,
    S3ResponseError,
    UnreachableError,
)
from storage_backend.backends.s3.file_parts import FileChangedError, FilePart
from storage_backend.backends.s3.handler_response import handler_response
from storage_backend.backends.s3.http import StaleConnectionError
from storage_backend.backends.s3.object_head import ObjectHead, etag_of, head_of
from storage_backend.backends.s3.requests import GetResponse
from storage_backend.backends.s3.responses import S3Response
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.backends.s3.signing import UNSIGNED, encode_query, quote_key
from storage_backend.backends.s3.xml_documents import (
    EmbeddedError,
    ErrorDocument,
    ListingPage,
    UnexpectedResponseError,
    delete_request,
    parse_copied,
    parse_deleted,
    parse_page,
)

T = TypeVar("T")

USER_AGENT = "storage-backend"
SIGNED_MOST = 1 << 20  # bytes; of a longer body only the Content-MD5 is signed, if it has one
_EMPTY = hashlib.sha256(b"").hexdigest()

# boto3's parameters -> HTTP headers ("Actions", Amazon S3 API Reference).
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


@dataclass(frozen=True, slots=True)
class _Request:
    """A request before it is addressed and signed.

    Attributes:
        operation: the name in the S3 API.
        method: the HTTP method.
        key: the object's key; None for a request on the bucket.
        headers: lower-case name -> value.
        query: percent-encoded, without "?".
        body: may be sent several times.
    """

    operation: str
    method: str
    key: str | None
    headers: Mapping[str, str]
    query: str
    body: bytes | memoryview | FilePart


class SignedRequests:
    """`ObjectRequests` without boto3, several times faster.

    Args:
        endpoint: the endpoint until a response names another region.
        settings: the settings of the storage.
        endpoint_in: returns the endpoint in a region; None if only boto3 can send there.
        skew: the clock difference to the service, shared with boto3.
        verifies_checksums: whether the service is Amazon's.
    """

    def __init__(
        self,
        endpoint: BucketEndpoint,
        settings: S3Settings,
        endpoint_in: Callable[[str], BucketEndpoint | None],
        skew: ClockSkew,
        *,
        verifies_checksums: bool,
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._endpoint_in = endpoint_in
        self._skew = skew
        self.verifies_checksums = verifies_checksums
        automatic = "auto" if verifies_checksums else "md5"
        self.checksum = automatic if settings.checksum == "auto" else settings.checksum
        self.is_real_service = True
        self._common = {} if settings.request_payer is None else {"RequestPayer": settings.request_payer}

    def close(self) -> None:
        """Close the idle connections."""
        self._endpoint.pool.close()

    def get(self, key: str, **parameters: Any) -> GetResponse:
        """GetObject."""
        ranged = "Range" in parameters
        if not ranged:
            parameters["ChecksumMode"] = "ENABLED"
        parse = partial(responses.get_response, ranged=ranged)
        response, start, whole = self._send(parse, self._request("GetObject", "GET", key, parameters))
        if whole is None and parameters.get("Range") != responses.FIRST:
            whole = self._size_from_head(key, parameters, response)
        head = head_of(response.headers, whole, whole="content-range" not in response.headers)
        return GetResponse(head, start, response.length, response)

    def head(self, key: str, **parameters: Any) -> ObjectHead:
        """HeadObject."""
        return self._send(responses.head_response, self._request("HeadObject", "HEAD", key, parameters))

    def put(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """PutObject."""
        return self._send(responses.put_response, self._request("PutObject", "PUT", key, parameters, body))

    def upload_part(self, key: str, body: bytes | memoryview | FilePart, **parameters: Any) -> ObjectHead:
        """UploadPart."""
        return self._send(responses.put_response, self._request("UploadPart", "PUT", key, parameters, body))

    def delete(self, key: str, **parameters: Any) -> None:
        """DeleteObject."""
        self._send(responses.delete_response, self._request("DeleteObject", "DELETE", key, parameters))

    def delete_batch(self, keys: Sequence[str]) -> dict[str, ErrorDocument]:
        """DeleteObjects."""
        body = delete_request(keys)
        md5 = hashlib.md5(body, usedforsecurity=False).digest()
        parameters = {"ContentMD5": base64.b64encode(md5).decode()}
        request = self._request("DeleteObjects", "POST", None, parameters, body, query=[("delete", "")])
        return self._send(responses.xml_response(parse_deleted), request)

    def page(
        self, prefix: str, *, delimiter: str = "", token: str | None = None, limit: int | None = None
    ) -> ListingPage:
        """ListObjectsV2. Keys are requested percent-encoded, as they may have characters that XML cannot represent."""
        query = [("encoding-type", "url"), ("list-type", "2"), ("prefix", prefix)]
        if delimiter:
            query.append(("delimiter", delimiter))
        if token is not None:
            query.append(("continuation-token", token))
        if limit is not None:
            query.append(("max-keys", str(limit)))
        return self._send(
            responses.xml_response(parse_page), self._request("ListObjectsV2", "GET", query=query)
        )

    def copy(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """CopyObject."""
        return self._copied("CopyObject", key, source, parameters)

    def copy_part(self, key: str, source: str, **parameters: Any) -> ObjectHead:
        """UploadPartCopy."""
        return self._copied("UploadPartCopy", key, source, parameters)

    def _size_from_head(self, key: str, parameters: Mapping[str, Any], response: S3Response) -> int | None:
        same = {name: parameters[name] for name in _QUERY if name in parameters}
        try:
            return responses.size_from_head(
                etag_of(response.headers.get("etag")),
                lambda: self.head(key, **same),
                lambda: self.get(key, Range=responses.FIRST, **same),
            )
        except BaseException:
            response.close()
            raise

    def _copied(self, operation: str, key: str, source: str, parameters: Mapping[str, Any]) -> ObjectHead:
        headers = {"x-amz-copy-source": quote(f"/{source}", safe="/-_.~")}
        request = self._request(operation, "PUT", key, parameters, headers=headers)
        return ObjectHead(etag=self._send(responses.xml_response(parse_copied), request))

    def _send(self, parse: Callable[[S3Response], T], request: _Request) -> T:
        """Send a request, and again for as long as `retries` allows.

        Args:
            parse: returns the result of a successful response; raises EmbeddedError if that is an error after all.
            request: the request.

        Raises:
            S3ResponseError: S3 refuses.
            UnreachableError: the network fails.
            UnexpectedResponseError: the response is not one of S3.
            FileChangedError: the file that is sent became shorter.
        """
        repaired: set[str] = set()
        attempts = stale = 0
        while True:
            attempts += 1
            endpoint = self._endpoint
            try:
                response = self._once(endpoint, request)
                if response.status < 300:
                    return parse(response)
                refused = responses.error_response(response, request.method)
            except StaleConnectionError as error:
                # The server closed the idle connection as the request was sent: no attempt (RFC 9112, 9.3.1).
                stale += 1
                if stale <= self._settings.max_concurrency + 1:
                    attempts -= 1
                    continue
                raise UnreachableError(error, attempts) from error
            except EmbeddedError as error:
                refused = S3ResponseError.inside(error.refused, 500)
            except (OSError, UnexpectedResponseError) as error:
                delay = retries.request_delay(error, attempts, self._settings.attempts)
                if delay is not None:
                    self._settings.sleep(delay)
                    continue
                if isinstance(error, FileChangedError):
                    raise
                if isinstance(error, OSError):
                    raise UnreachableError(error, attempts) from error
                error.attempts = attempts
                raise
            # A request over a connection that broke may have been processed all the same.
            refused.attempts = attempts + stale
            if self._repaired(refused, repaired, endpoint):
                continue
            delay = retries.request_delay(refused, attempts, self._settings.attempts)
            if delay is None:
                try:
                    raise refused
                finally:
                    del refused  # its traceback leads to this frame: a cycle
            self._settings.sleep(delay)

    def _once(self, endpoint: BucketEndpoint, request: _Request) -> S3Response:
        key, body = request.key, request.body
        path = endpoint.root + quote_key(key) if key is not None else endpoint.root.removesuffix("/") or "/"
        headers = {**request.headers, "host": endpoint.host}
        if endpoint.signer is not None:
            endpoint.signer.sign(
                request.method,
                path,
                request.query,
                headers,
                endpoint.credentials(),
                self._settings.clock() + self._skew.seconds,
                _payload(body, headers, tls=endpoint.tls) if body else _EMPTY,
            )
        headers["user-agent"] = USER_AGENT
        target = f"{path}?{request.query}" if request.query else path
        if endpoint.emit is not None:
            event = f"before-send.s3.{request.operation}"
            given = handler_response(endpoint, event, (request.method, target), headers, body)
            if given is not None:
                return given
        return endpoint.pool.exchange(request.method, target, headers, body)

    def _request(
        self,
        operation: str,
        method: str,
        key: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        body: bytes | memoryview | FilePart = b"",
        *,
        query: Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> _Request:
        sent = dict(headers or {})
        pairs = [*query]
        for name, value in {**self._common, **(parameters or {})}.items():
            if name in _QUERY:
                pairs.append((_QUERY[name], str(value)))
            elif name == "Metadata":
                sent.update({_META + own: text for own, text in value.items()})
            else:
                sent[_HEADERS[name]] = value
        return _Request(operation, method, key, sent, encode_query(pairs) if pairs else "", body)

    def _repaired(self, refused: S3ResponseError, repaired: set[str], endpoint: BucketEndpoint) -> bool:
        """Correct the region, the clock or the credentials after an error about it, each once per request; whether it did."""
        if refused.region and "region" not in repaired and _is_elsewhere(refused, endpoint):
            repaired.add("region")
            if refused.region == self._endpoint.region:  # another thread has corrected it
                return True
            endpoint_in = self._endpoint_in(refused.region)
            if endpoint_in is not None:
                self._endpoint = endpoint_in
            return endpoint_in is not None
        if refused.code in WRONG_CLOCK and refused.server_time is not None and "clock" not in repaired:
            repaired.add("clock")
            self._skew.seconds = refused.server_time - self._settings.clock()
            return True
        if refused.code in STALE_CREDENTIALS and "credentials" not in repaired:
            repaired.add("credentials")
            return endpoint.refresh()
        return False


def _is_elsewhere(refused: S3ResponseError, endpoint: BucketEndpoint) -> bool:
    if endpoint.signer is None or refused.region == endpoint.region:
        return False
    return refused.status in {301, 307, 400, 403}


def _payload(body: bytes | memoryview | FilePart, headers: Mapping[str, str], *, tls: bool) -> str:
    """The x-amz-content-sha256 of a body; `UNSIGNED` over TLS, for a file, and for a long body with a signed MD5."""
    digest = headers.get("x-amz-checksum-sha256")
    if digest is not None:
        return base64.b64decode(digest).hex()
    if tls or isinstance(body, FilePart) or (len(body) > SIGNED_MOST and "content-md5" in headers):
        return UNSIGNED
    return hashlib.sha256(body, usedforsecurity=False).hexdigest()
