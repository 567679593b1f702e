"""BucketEndpoint: host, region, credentials and TLS, as boto3 resolves them; taken from a request that it builds."""

from __future__ import annotations

import io
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from storage_backend.backends.s3.boto3_client import credentials_now
from storage_backend.backends.s3.boto3_handlers import SCOPE
from storage_backend.backends.s3.botocore_private import (
    certificates_of,
    credentials_of,
    handlers_of,
    module_of,
    quick_credentials_of,
    replace_credentials,
)
from storage_backend.backends.s3.http import ConnectionPool
from storage_backend.backends.s3.settings import S3Settings, check_sendable
from storage_backend.backends.s3.signing import Signer, SigningCredentials
from storage_backend.errors import ConfigurationError
from storage_backend.forks import no_fork

_PROBE = "k"  # a key whose position in the path shows the part before it


@dataclass(frozen=True)
class BucketEndpoint:
    """Where requests for a bucket are sent, and how they are signed.

    Attributes:
        host: the Host header.
        root: the path before a key: "/bucket/", or "/" where the host names the bucket.
        region: the region in signatures; "" for anonymous requests.
        signer: None for anonymous requests.
        credentials: returns the current credentials.
        refresh: replaces the credentials; returns whether they changed.
        pool: connections to the host.
        tls: whether the connections use TLS.
        emit: calls handlers that may respond instead of the service, such as moto's; None if there are none.
        origin: the URL up to the path.
    """

    host: str
    root: str
    region: str
    signer: Signer | None
    credentials: Callable[[], SigningCredentials]
    refresh: Callable[[], bool]
    pool: ConnectionPool
    tls: bool
    emit: Callable[..., Any] | None
    origin: str


def endpoint_of(client: Any, settings: S3Settings) -> BucketEndpoint | None:
    """The endpoint of a botocore client; None if only the client itself can send or sign its requests."""
    if settings.bucket.endswith("--x-s3"):
        return None  # directory buckets need sessions ("CreateSession", Amazon S3 API Reference)
    request = _capture_request(client, settings.bucket)
    headers = {str(name).lower(): _text(value) for name, value in request.headers.items()}
    scope = SCOPE.match(headers.get("authorization", ""))
    if scope is None and not settings.anonymous:
        return None
    parts = urlsplit(request.url)
    verify, own_certificate = certificates_of(client)
    tls = parts.scheme == "https"
    signs = credentials_of(client) is not None
    unknown = (tls and not verify and not isinstance(verify, str)) or own_certificate
    if unknown or (not signs and not settings.anonymous) or _is_proxied(client, request.url):
        return None
    source = CredentialSource(client, settings)
    return BucketEndpoint(
        host=parts.netloc,
        root=parts.path.removesuffix(_PROBE),
        region="" if scope is None else scope[1],
        signer=None if scope is None else Signer(scope[1], scope[2]),
        credentials=_no_credentials if scope is None else source.credentials,
        refresh=source.refresh,
        pool=ConnectionPool(
            parts.hostname or "",
            parts.port or (443 if tls else 80),
            tls=_context(verify) if tls else None,
            connect_timeout=settings.connect_timeout,
            io_timeout=settings.io_timeout,
            idle=max(16, settings.max_concurrency),
        ),
        tls=tls,
        emit=_emit(client),
        origin=f"{parts.scheme}://{parts.netloc}",
    )


def _capture_request(client: Any, bucket: str) -> Any:
    """A request as the client would send it, without sending it."""
    from botocore.awsrequest import AWSResponse

    seen: list[Any] = []
    thread = threading.get_ident()

    def catch(request: Any, **_: object) -> Any:
        if threading.get_ident() != thread:
            return None
        seen.append(request)
        return AWSResponse(request.url, 200, {"content-length": "0"}, _EmptyBody())

    event = "before-send.s3.HeadObject"
    client.meta.events.register_first(event, catch)
    try:
        client.head_object(Bucket=bucket, Key=_PROBE)
    finally:
        client.meta.events.unregister(event, catch)
    return seen[0]


class _EmptyBody(io.BytesIO):
    """An empty body with the interface of urllib3."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        return iter(())


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _is_proxied(client: Any, url: str) -> bool:
    from botocore.utils import get_environ_proxies

    given = client.meta.config.proxies
    found = get_environ_proxies(url) if given is None else given
    return urlsplit(url).scheme in found


def _context(verify: bool | str | None) -> ssl.SSLContext:
    from botocore.httpsession import where

    path = verify if isinstance(verify, str) else where()
    try:
        with no_fork():
            return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigurationError(
            f"ca_bundle: certificates cannot be loaded from {path!r}: {error}", parameter="ca_bundle"
        ) from error


def _emit(client: Any) -> Callable[..., Any] | None:
    """A function that calls the handlers of "before-send" (moto's); None if there are none but ours."""
    found = handlers_of(client, "before-send.s3.GetObject")
    if all(module_of(handler).startswith("storage_backend.") for handler in found):
        return None
    return cast("Callable[..., Any]", client.meta.events.emit_until_response)


def _no_credentials() -> SigningCredentials:
    raise ConfigurationError("anonymous requests are not signed", parameter="anonymous")


class CredentialSource:
    """The credentials of a botocore client.

    Args:
        client: created for *settings*.
        settings: the settings of the storage.
    """

    def __init__(self, client: Any, settings: S3Settings) -> None:
        self._client = client
        self._settings = settings
        self._used = threading.local()  # the last ones that each thread used
        self._checked: tuple[Any, SigningCredentials] | None = None
        self._lock = threading.Lock()

    def credentials(self) -> SigningCredentials:
        """The current credentials. Those about to expire are renewed, once for all threads.

        Raises:
            ConfigurationError: one cannot be sent.
        """
        frozen = self._used.frozen = quick_credentials_of(self._client).get_frozen_credentials()
        checked = self._checked
        if checked is not None and checked[0] == frozen:
            return checked[1]
        check_sendable("access_key", frozen.access_key)
        check_sendable("secret_key", frozen.secret_key)
        check_sendable("session_token", frozen.token)
        found = SigningCredentials(frozen.access_key, frozen.secret_key, frozen.token)
        self._checked = (frozen, found)
        return found

    def refresh(self) -> bool:
        """Replace the credentials that this thread used, although they have not expired; return whether they changed.

        Credentials that botocore does not renew are read again from their source: files and variables change.
        """
        credentials = credentials_of(self._client)
        before = getattr(self._used, "frozen", None) or credentials.get_frozen_credentials()
        renew = getattr(credentials, "_protected_refresh", None)
        with getattr(credentials, "_refresh_lock", None) or self._lock:
            # Not get_frozen_credentials, which takes the lock itself shortly before expiry.
            if renew is not None:
                if getattr(credentials, "_frozen_credentials", before) == before:
                    renew(is_mandatory=True)
            elif credentials_of(self._client).get_frozen_credentials() == before:
                given = getattr(credentials, "method", None) == "explicit"
                if not given or self._settings.access_key is not None:
                    # Replaced as a whole, since other threads may be reading them.
                    replace_credentials(self._client, credentials_now(self._settings) or credentials)
        return bool(credentials_of(self._client).get_frozen_credentials() != before)
