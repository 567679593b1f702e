"""Event handlers of a boto3 client, which repeat requests that failed because of a wrong clock or stale credentials.

boto3 does neither: it signs by the local clock, and renews credentials only before their expiry. Its URLs for a Requester Pays
bucket also need a header that a plain HTTP client does not send.
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
    """The difference between the service's clock and the local one, shared by our HTTP client and boto3.

    Attributes:
        seconds: by which the service is ahead; 0 until a response shows otherwise.
    """

    def __init__(self) -> None:
        self.seconds = 0.0


class Boto3Handlers:
    """Event handlers of a client.

    Args:
        skew: updated from responses and used for signatures.
        clock: returns Unix time in seconds.
        credentials: returns the current credentials.
        refresh: replaces the credentials; returns whether they changed.
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
        """Register the handlers with *client*."""
        client.meta.events.register_first("needs-retry.s3", self.stop_blind_redirect)
        client.meta.events.register("needs-retry.s3", self.retry_delay)
        client.meta.events.register("before-send.s3", self.sign_again)
        client.meta.events.register("before-sign.s3", payer_in_query)

    @staticmethod
    def stop_blind_redirect(response: Any = None, request_dict: Any = None, **_: object) -> None:
        """Make botocore follow a redirect only to a region that the response names.

        Otherwise it sends a HeadBucket, which may be denied; if that is redirected too, it never ends.
        """
        if response is None or request_dict is None:
            return
        parsed = response[1]
        headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if "x-amz-bucket-region" not in headers and "Region" not in parsed.get("Error", {}):
            request_dict["context"].setdefault("s3_redirect", {})["redirected"] = True

    def retry_delay(self, response: Any = None, request_dict: Any = None, **_: object) -> float | None:
        """0 to repeat a failed request at once, for each cause only once; None to leave it to botocore."""
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
        """If the clocks differ, replace the signature by one with the service's time."""
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
    """Handle "before-sign": move the payer into the URL ("Downloading objects from Requester Pays buckets", S3 User Guide)."""
    name = "x-amz-request-payer"
    if "v4-query" in str(signature_version) and name in request.headers:
        request.params[name] = request.headers[name]
        del request.headers[name]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
