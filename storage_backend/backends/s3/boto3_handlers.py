"""Handlers of a boto3 client's events, which repair requests that were refused for a wrong clock or stale credentials.

boto3 does neither: it signs by this machine's clock, and renews credentials only at their announced expiry. And its URLs for a
bucket whose requester pays ask for a header that a plain HTTP client does not send.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from storage_backend.backends.s3.errors import STALE_CREDENTIALS, WRONG_CLOCK
from storage_backend.backends.s3.object_head import http_date
from storage_backend.backends.s3.signing import UNSIGNED, Signer, SigningCredentials

SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^,]+/\d{8}/([^/,]+)/([^/,]+)/aws4_request")
_SIGNED = re.compile(r"SignedHeaders=([^,\s]+)")
_MARK = "storage-backend-repaired"
_PORTS = {"http": 80, "https": 443}


class ClockSkew:
    """How far the service's clock is ahead of this machine's; shared by our HTTP client and boto3.

    Attributes:
        seconds: 0 until a response shows otherwise.
    """

    def __init__(self) -> None:
        self.seconds = 0.0


class Boto3Handlers:
    """Handlers of a client's events.

    Args:
        skew: updated from responses, and used to sign.
        clock: seconds of Unix.
        credentials: the credentials of this moment.
        refresh: gets new ones; whether they differ.
    """

    def __init__(
        self,
        skew: ClockSkew,
        clock: Callable[[], float],
        credentials: Callable[[], SigningCredentials],
        refresh: Callable[[], bool],
    ) -> None:
        self._skew = skew
        self._clock = clock
        self._credentials = credentials
        self._refresh = refresh

    def register(self, client: Any) -> None:
        """Have *client* call the handlers."""
        client.meta.events.register_first("needs-retry.s3", self.follow_no_blind_redirect)
        client.meta.events.register("needs-retry.s3", self.try_again)
        client.meta.events.register("before-send.s3", self.sign_again)
        client.meta.events.register("before-sign.s3", payer_in_query)

    @staticmethod
    def follow_no_blind_redirect(response: Any = None, request_dict: Any = None, **_: object) -> None:
        """Have botocore follow a redirect only to a region that the response names.

        Else it sends a HeadBucket, which may be denied, and if that is redirected too, it never ends.
        """
        if response is None or request_dict is None:
            return
        parsed = response[1]
        headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "x-amz-bucket-region" not in headers and "Region" not in parsed.get("Error", {}):
            request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True

    def try_again(self, response: Any = None, request_dict: Any = None, **_: object) -> float | None:
        """0 if a refused request is to be repeated at once; for each reason only once."""
        if response is None or request_dict is None:
            return None
        parsed = response[1]
        code = parsed.get("Error", {}).get("Code")
        repaired = request_dict["context"].setdefault(_MARK, set())
        if code in WRONG_CLOCK and "clock" not in repaired:
            repaired.add("clock")
            date = http_date(parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
            if date is not None:
                self._skew.seconds = date.timestamp() - self._clock()
                return 0
        if code in STALE_CREDENTIALS and "credentials" not in repaired:
            repaired.add("credentials")
            return 0 if self._refresh() else None
        return None

    def sign_again(self, request: Any, **_: object) -> None:
        """Replace a signature by our clock by one by the service's clock, where they differ."""
        found = SCOPE.match(_text(request.headers.get("Authorization", "")))
        if not self._skew.seconds or found is None:
            return
        sent: Mapping[str, str] = {str(name).lower(): _text(value) for name, value in request.headers.items()}
        signed = _SIGNED.search(sent["authorization"])
        names = signed[1].split(";") if signed else []
        parts = urlsplit(request.url)
        host = parts.netloc.removesuffix(f":{_PORTS.get(parts.scheme)}")
        headers = {name: sent[name] for name in names if name in sent} | {"host": sent.get("host", host)}
        Signer(found[1], found[2]).sign(
            request.method,
            parts.path or "/",
            parts.query,
            headers,
            self._credentials(),
            self._clock() + self._skew.seconds,
            sent.get("x-amz-content-sha256", UNSIGNED),
        )
        for name in ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token"):
            if name in headers:
                request.headers[name] = headers[name]


def payer_in_query(request: Any = None, signature_version: str = "", **_: object) -> None:
    """A handler of "before-sign": have a URL carry who pays ("Downloading objects from Requester Pays buckets", S3 User Guide)."""
    name = "x-amz-request-payer"
    if "v4-query" in str(signature_version) and name in request.headers:
        request.params[name] = request.headers[name]
        del request.headers[name]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
