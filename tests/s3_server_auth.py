"""Signature Version 4 from the server's side, written from its specification and not from a client's code."""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

from tests.s3_server_wire import Request, S3Error

ALGORITHM = "AWS4-HMAC-SHA256"
SKEW = 15 * 60  # seconds; "RequestTimeTooSkewed" in "Error responses", Amazon S3 API Reference
WEEK = 7 * 24 * 3600  # seconds; the longest that a presigned URL may be good for
UNSIGNED = "UNSIGNED-PAYLOAD"
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class Credentials:
    """Whom the server knows.

    Attributes:
        secrets: access key -> secret key.
        tokens: access key -> the session token that must come with it.
        expired: session tokens that are refused with ExpiredToken.
    """

    secrets: dict[str, str]
    tokens: dict[str, str] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Claim:
    """What a request says about its signature."""

    access_key: str
    date: str
    region: str
    service: str
    terminator: str
    signed: list[str]
    signature: str
    timestamp: str
    token: str | None
    payload: str


class Verifier:
    """Tells whether a request was signed by one of the known keys.

    Args:
        credentials: whom to know.
        region: gives the region that a bucket is in.
        clock: POSIX seconds.
    """

    def __init__(
        self, credentials: Credentials, region: Callable[[str], str], clock: Callable[[], float]
    ) -> None:
        self.credentials = credentials
        self.wrong_region: Literal["malformed", "redirect"] = "malformed"
        self._region = region
        self._clock = clock
        self._keys: dict[tuple[str, str, str], bytes] = {}

    def verify(self, request: Request) -> bool:
        """Check the signature; False if there is none.

        Raises:
            S3Error: it is refused.
        """
        authorization = request.headers.get("authorization")
        if authorization is not None:
            claim = self._from_header(request, authorization)
            self._check_time(claim)
        elif "X-Amz-Signature" in request.query:
            claim = self._from_query(request)
            self._check_expiry(claim, request)
        else:
            return False
        self._check_scope(claim, request)
        secret = self._secret(claim)
        expected = hmac.digest(self._key(claim, secret), self._string(claim, request), "sha256").hex()
        if not hmac.compare_digest(expected, claim.signature):
            raise S3Error(
                "SignatureDoesNotMatch",
                403,
                "The request signature we calculated does not match the signature you provided. "
                "Check your key and signing method.",
                AWSAccessKeyId=claim.access_key,
                StringToSign=self._string(claim, request).decode(),
                SignatureProvided=claim.signature,
                CanonicalRequest=_canonical(claim, request).decode("utf-8", "replace"),
            )
        return True

    def _from_header(self, request: Request, authorization: str) -> _Claim:
        algorithm, _, rest = authorization.partition(" ")
        fields = dict(each.strip().partition("=")[::2] for each in rest.split(","))
        scope = fields.get("Credential", "").rsplit("/", 4)
        if algorithm != ALGORITHM or len(scope) != 5 or {"SignedHeaders", "Signature"} - set(fields):
            raise S3Error("AuthorizationHeaderMalformed", 400, "The authorization header is malformed.")
        payload = request.headers.get("x-amz-content-sha256")
        if payload is None:
            missing = "Missing required header for this request: x-amz-content-sha256"
            raise S3Error("InvalidRequest", 400, missing)
        if not (_HEX.fullmatch(payload) or payload == UNSIGNED or payload.startswith("STREAMING-")):
            raise S3Error("InvalidArgument", 400, "x-amz-content-sha256 must be a digest or a known value.")
        timestamp = request.headers.get("x-amz-date", "")
        token = request.headers.get("x-amz-security-token")
        signed = fields["SignedHeaders"].split(";")
        access_key, date, region, service, end = scope
        return _Claim(
            access_key, date, region, service, end, signed, fields["Signature"], timestamp, token, payload
        )

    @staticmethod
    def _from_query(request: Request) -> _Claim:
        query = request.query
        scope = query.get("X-Amz-Credential", "").rsplit("/", 4)
        missing = {"X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders"} - set(query)
        if query.get("X-Amz-Algorithm") != ALGORITHM or len(scope) != 5 or missing:
            raise S3Error(
                "AuthorizationQueryParametersError",
                400,
                "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, "
                "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.",
            )
        access_key, date, region, service, end = scope
        return _Claim(
            *(access_key, date, region, service, end),
            query["X-Amz-SignedHeaders"].split(";"),
            query["X-Amz-Signature"],
            query["X-Amz-Date"],
            query.get("X-Amz-Security-Token"),
            request.headers.get("x-amz-content-sha256", UNSIGNED),
        )

    def _check_time(self, claim: _Claim) -> None:
        now = self._clock()
        if abs(_seconds(claim.timestamp) - now) > SKEW:
            raise S3Error(
                "RequestTimeTooSkewed",
                403,
                "The difference between the request time and the current time is too large.",
                RequestTime=claim.timestamp,
                ServerTime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
                MaxAllowedSkewMilliseconds=SKEW * 1000,
            )

    def _check_expiry(self, claim: _Claim, request: Request) -> None:
        now = self._clock()
        start = _seconds(claim.timestamp)
        expires = request.query["X-Amz-Expires"]
        if not expires.isascii() or not expires.isdigit() or int(expires) > WEEK:
            raise S3Error(
                "AuthorizationQueryParametersError", 400, f"X-Amz-Expires must be less than {WEEK} seconds"
            )
        if start - now > SKEW:
            raise S3Error("AccessDenied", 403, "Request is not valid yet")
        if now > start + int(expires):
            times = {"X-Amz-Expires": expires, "Expires": formatdate(start + int(expires), usegmt=True)}
            raise S3Error("AccessDenied", 403, "Request has expired", also=times)

    def _check_scope(self, claim: _Claim, request: Request) -> None:
        if claim.service != "s3" or claim.terminator != "aws4_request" or claim.date != claim.timestamp[:8]:
            raise S3Error("AuthorizationHeaderMalformed", 400, "The credential's scope is malformed.")
        region = self._region(request.bucket)
        if claim.region == region:
            return
        where = {"x-amz-bucket-region": region}
        if self.wrong_region == "redirect":
            raise S3Error(
                "PermanentRedirect",
                301,
                "The bucket you are attempting to access must be addressed using the specified endpoint. "
                "Please send all future requests to this endpoint.",
                headers=where,
                Endpoint=f"{request.bucket}.s3.{region}.amazonaws.com",
                Bucket=request.bucket,
            )
        raise S3Error(
            "AuthorizationHeaderMalformed",
            400,
            f"The authorization header is malformed; the region '{claim.region}' is wrong; "
            f"expecting '{region}'",
            headers=where,
            Region=region,
        )

    def _secret(self, claim: _Claim) -> str:
        secret = self.credentials.secrets.get(claim.access_key)
        if claim.token is not None and claim.token in self.credentials.expired:
            raise S3Error(
                "ExpiredToken", 400, "The provided token has expired.", also={"Token-0": claim.token}
            )
        if secret is None:
            raise S3Error(
                "InvalidAccessKeyId",
                403,
                "The AWS Access Key Id you provided does not exist in our records.",
                AWSAccessKeyId=claim.access_key,
            )
        if claim.token != self.credentials.tokens.get(claim.access_key):
            if claim.token is None:  # temporary keys are not known without their token
                raise S3Error(
                    "InvalidAccessKeyId",
                    403,
                    "The AWS Access Key Id you provided does not exist in our records.",
                    AWSAccessKeyId=claim.access_key,
                )
            raise S3Error("InvalidToken", 400, "The provided token is malformed or otherwise invalid.")
        return secret

    def _key(self, claim: _Claim, secret: str) -> bytes:
        known = (secret, claim.date, claim.region)
        key = self._keys.get(known)
        if key is None:
            key = f"AWS4{secret}".encode()
            for text in (claim.date, claim.region, "s3", "aws4_request"):
                key = hmac.digest(key, text.encode(), "sha256")
            self._keys[known] = key
        return key

    @staticmethod
    def _string(claim: _Claim, request: Request) -> bytes:
        digest = hashlib.sha256(_canonical(claim, request)).hexdigest()
        scope = f"{claim.date}/{claim.region}/{claim.service}/{claim.terminator}"
        return f"{ALGORITHM}\n{claim.timestamp}\n{scope}\n{digest}".encode()


def _canonical(claim: _Claim, request: Request) -> bytes:
    """ "Create a signed AWS API request", AWS Identity and Access Management User Guide."""
    headers = request.headers
    unsigned = [name for name in headers if name.startswith("x-amz-") and name not in claim.signed]
    if "authorization" not in headers:
        unsigned = [name for name in unsigned if name != "x-amz-content-sha256"]
    if unsigned or "host" not in claim.signed:
        raise S3Error(
            "AccessDenied",
            403,
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(unsigned or ["host"]),
        )
    lines = "".join(f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in claim.signed)
    query = "&".join(
        f"{name}={value}"
        for name, value in sorted(
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in request.pairs
            if name != "X-Amz-Signature"
        )
    )
    path = quote(unquote_to_bytes(request.signed_path), safe="/-_.~")
    return f"{request.method}\n{path}\n{query}\n{lines}\n{';'.join(claim.signed)}\n{claim.payload}".encode(
        "utf-8", "surrogateescape"
    )


def _seconds(timestamp: str) -> float:
    try:
        return calendar.timegm(time.strptime(timestamp, "%Y%m%dT%H%M%SZ"))
    except ValueError as error:
        raise S3Error(
            "AccessDenied", 403, "AWS authentication requires a valid Date or x-amz-date header"
        ) from error
