"""How the S3 server of the tests gets a body out of its envelope, and checks it as Amazon S3 does."""

from __future__ import annotations

import base64
import binascii
import hashlib

from tests.s3_server_store import DIGESTS, checksum
from tests.s3_server_wire import Request, S3Error

_PREFIX = "x-amz-checksum-"
_SHA256_HEX = 64


def receive(request: Request, raw: bytes, corrupt: int | None = None) -> None:
    """Set body and checksums of *request* from what was sent, with the byte *corrupt* of the body changed first.

    Raises:
        S3Error: the body is not what the headers or trailers say.
    """
    headers = request.headers
    payload = headers.get("x-amz-content-sha256", "")
    streaming = payload.startswith("STREAMING-")
    body, trailers = _unwrap(raw) if streaming else (raw, {})
    if corrupt is not None:
        body = corrupted(body, corrupt)
    if streaming:
        if str(len(body)) != headers.get("x-amz-decoded-content-length"):
            raise _incomplete()
        for name in filter(None, headers.get("x-amz-trailer", "").lower().split(",")):
            if name.strip() not in trailers:
                raise S3Error(
                    "MalformedTrailerError",
                    400,
                    "The request contained trailing data that was not well-formed.",
                )
    elif len(payload) == _SHA256_HEX and hashlib.sha256(body).hexdigest() != payload:
        raise S3Error(
            "XAmzContentSHA256Mismatch",
            400,
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
            ClientComputedContentSHA256=payload,
            S3ComputedContentSHA256=hashlib.sha256(body).hexdigest(),
        )
    _check_md5(headers.get("content-md5"), body)
    request.body = body
    request.checksums = _sent(request, trailers)
    if request.operation == "CompleteMultipartUpload":
        return  # what it says is of the object
    for algorithm, value in request.checksums.items():
        if checksum(algorithm, body) != value:
            raise S3Error(
                "BadDigest",
                400,
                f"The {algorithm.upper()} you specified did not match the calculated checksum.",
            )


def corrupted(body: bytes, at: int) -> bytes:
    """*body* with the byte *at*, counted round, changed."""
    if not body:
        return body
    at %= len(body)
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _sent(request: Request, trailers: dict[str, str]) -> dict[str, str]:
    sent = {
        name.removeprefix(_PREFIX): value
        for name, value in {**request.headers, **trailers}.items()
        if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) not in {"mode", "type", "algorithm"}
    }
    if len(sent) > 1:
        raise S3Error(
            "InvalidRequest",
            400,
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        )
    unknown = sorted(set(sent) - set(DIGESTS))
    if unknown:
        raise S3Error("NotImplemented", 501, f"This server has no {unknown[0]}.")
    if not sent and "x-amz-sdk-checksum-algorithm" in request.headers and request.method == "PUT":
        raise S3Error(
            "InvalidRequest",
            400,
            "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer "
            "headers were found.",
        )
    return sent


def _check_md5(given: str | None, body: bytes) -> None:
    if given is None:
        return
    try:
        digest = base64.b64decode(given, validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 16:
        raise S3Error("InvalidDigest", 400, "The Content-MD5 you specified was invalid.")
    if digest != hashlib.md5(body, usedforsecurity=False).digest():
        raise S3Error("BadDigest", 400, "The Content-MD5 you specified did not match what we received.")


def _unwrap(raw: bytes) -> tuple[bytes, dict[str, str]]:
    """The body and the trailers of aws-chunked; chunk signatures are not checked.

    "Signature calculations for trailing headers", Amazon S3 API Reference.
    """
    parts = []
    position = 0
    while True:
        end = raw.find(b"\r\n", position)
        try:
            size = int(raw[position:end].split(b";")[0], 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0:
            raise _incomplete()
        position = end + 2
        if not size:
            break
        parts.append(raw[position : position + size])
        position += size
        if raw[position : position + 2] != b"\r\n":
            raise _incomplete()
        position += 2
    lines = raw[position:].decode("latin-1").split("\r\n")
    trailers = {}
    for line in lines:
        name, found, value = line.partition(":")
        if found:
            trailers[name.strip().lower()] = value.strip()
    return b"".join(parts), trailers


def _incomplete() -> S3Error:
    return S3Error("IncompleteBody", 400, "The request body terminated unexpectedly")
