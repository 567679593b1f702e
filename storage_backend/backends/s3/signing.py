"""AWS Signature Version 4 in the Authorization header, for S3.

The rules: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", Amazon S3 API Reference.
Where they leave a choice, this follows botocore.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote

UNSIGNED = "UNSIGNED-PAYLOAD"
"""Instead of a body's digest: the signature does not cover the body."""

LEFT_OUT = frozenset(
    [
        "baggage",
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-amzn-trace-id",
    ]
)
"""Headers that are not signed, since proxies may change them (`SIGNED_HEADERS_BLACKLIST`, botocore 1.44.5)."""

_KEPT = 4  # derived keys: two secrets (around a refresh of credentials) times two days (around midnight, UTC)

# Letters, digits and "_.-~" are never encoded, "/" not in a path. Nearly all names have only these.
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.~/-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")


@dataclass(frozen=True, slots=True)
class SigningCredentials:
    """Immutable credentials; the secret key and the token are not in the repr."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class Signer:
    """Signs requests to one service in one region. Thread-safe and fork-safe."""

    def __init__(self, region: str, service: str = "s3") -> None:
        self._region = region
        self._service = service
        # Both are replaced, never modified, so no lock is needed, which could stay locked in a forked child.
        self._clock = (0, "19700101T000000Z")
        self._derived: dict[tuple[str, str], tuple[str, hmac.HMAC]] = {}

    def sign(  # noqa: PLR0917 - the parts of a request in the order in which they are sent
        self,
        method: str,
        path: str,
        query: str,
        headers: dict[str, str],
        credentials: SigningCredentials,
        moment: float,
        payload: str = UNSIGNED,
    ) -> None:
        """Add x-amz-date, x-amz-content-sha256, x-amz-security-token (if any) and authorization to *headers*.

        Headers added by an earlier call are replaced, so a failed request can be signed again.

        Args:
            method: as sent, in upper case.
            path: as sent, percent-encoded (`quote_key`). It is signed without normalising "//", "." and "..".
            query: as sent, without "?", percent-encoded (`encode_query`), in any order.
            headers: names in lower case, with "host". All are signed except `LEFT_OUT`, and must be sent unchanged.
                Values should be ASCII, since others are signed as UTF-8 but sent as Latin-1.
            credentials: the credentials.
            moment: Unix time in seconds by the service's clock, which tolerates a difference of 15 minutes.
            payload: lower-case hex of the body's SHA-256, or `UNSIGNED`.
        """
        stamp = self._stamp(int(moment))
        day = stamp[:8]
        scope, key = self._derived.get((day, credentials.secret_key)) or self._derive(
            day, credentials.secret_key
        )

        headers.pop("authorization", None)
        headers["x-amz-date"] = stamp
        headers["x-amz-content-sha256"] = payload
        if credentials.token:
            headers["x-amz-security-token"] = credentials.token
        else:
            headers.pop("x-amz-security-token", None)

        names = sorted(headers.keys() - LEFT_OUT)
        signed = ";".join(names)
        lines = "\n".join([f"{name}:{' '.join(headers[name].split())}" for name in names])
        request = f"{method}\n{path}\n{_canonical(query)}\n{lines}\n\n{signed}\n{payload}"
        digest = hashlib.sha256(request.encode()).hexdigest()

        signature = key.copy()
        signature.update(f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode())
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
            f"SignedHeaders={signed}, Signature={signature.hexdigest()}"
        )

    def _stamp(self, second: int) -> str:
        latest, stamp = self._clock
        if second != latest:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._clock = (second, stamp)
        return stamp

    def _derive(self, day: str, secret: str) -> tuple[str, hmac.HMAC]:
        """The scope of a day's signatures, and an HMAC with their key, to be copied for each."""
        key = f"AWS4{secret}".encode()
        for part in (day, self._region, self._service, "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        derived = (f"{day}/{self._region}/{self._service}/aws4_request", hmac.new(key, digestmod="sha256"))
        self._derived = dict([*self._derived.items(), ((day, secret), derived)][-_KEPT:])
        return derived


def quote_key(key: str) -> str:
    """*key* percent-encoded for a path.

    Raises:
        UnicodeEncodeError: it holds a lone surrogate.
    """
    return key if _PLAIN_KEY.fullmatch(key) else quote(key, safe="/~")


def encode_query(pairs: Iterable[tuple[str, str]]) -> str:
    """The names and values percent-encoded as a query, in the order given.

    Raises:
        UnicodeEncodeError: one holds a lone surrogate.
    """
    return "&".join([f"{_quote(name)}={_quote(value)}" for name, value in pairs])


def _quote(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else quote(text, safe="")


def _canonical(query: str) -> str:
    """*query* sorted by name, then value, with "=" after each name."""
    if not query:
        return ""
    # As tuples: "=" sorts after "-" and digits, so sorting whole pairs gives another order.
    pairs = sorted([pair.partition("=") for pair in query.split("&")])
    return "&".join([f"{name}={value}" for name, _, value in pairs])
