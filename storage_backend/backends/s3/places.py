"""Places: where a client sends the requests for a bucket, and how it signs them, found out by having it make one."""

from __future__ import annotations

import io
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast
from urllib.parse import urlsplit

from storage_backend.backends.s3.clients import credentials_now, emitter, module_of
from storage_backend.backends.s3.mending import SCOPE
from storage_backend.backends.s3.pool import Pool
from storage_backend.backends.s3.settings import Settings, check_sendable
from storage_backend.backends.s3.signing import Keys, Signer
from storage_backend.backends.s3.wire import Place
from storage_backend.errors import ConfigurationError
from storage_backend.forks import no_fork


def place_of(client: Any, settings: Settings) -> Place | None:
    """Where the client sends requests for the bucket, and how it signs; None where only the client itself can."""
    if settings.bucket.endswith("--x-s3"):
        return None  # directory buckets have sessions of their own
    request = _captured(client, settings.bucket)
    headers = {str(name).lower(): _text(value) for name, value in request.headers.items()}
    scope = SCOPE.match(headers.get("authorization", ""))
    if scope is None and not settings.anonymous:
        return None
    parts = urlsplit(request.url)
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    verify = getattr(session, "_verify", None)
    tls = parts.scheme == "https"
    signs = credentials_of(client) is not None
    unknown = (tls and not verify and not isinstance(verify, str)) or getattr(session, "_cert_file", None)
    if unknown or (not signs and not settings.anonymous) or _proxied(client, request.url):
        return None
    source = Source(client, settings)
    host = parts.hostname or ""
    port = parts.port or (443 if tls else 80)
    return Place(
        host=parts.netloc,
        root=parts.path.removesuffix(_PROBE),
        region="" if scope is None else scope[1],
        signer=None if scope is None else Signer(scope[1], scope[2]),
        keys=_no_keys if scope is None else source.keys,
        refresh=source.refresh,
        pool=Pool(
            host,
            port,
            tls=_context(verify) if tls else None,
            connect_timeout=settings.connect_timeout,
            io_timeout=settings.io_timeout,
            idle=max(16, settings.max_concurrency),
        ),
        tls=tls,
        emit=_emit(client),
        origin=f"{parts.scheme}://{parts.netloc}",
    )


_PROBE = "k"  # a key whose place in the path shows what stands before it


def _captured(client: Any, bucket: str) -> Any:
    """A request of the client as it would be sent; it is not."""
    from botocore.awsrequest import AWSResponse

    seen: list[Any] = []
    thread = threading.get_ident()

    def catch(request: Any, **_: object) -> Any:
        if threading.get_ident() != thread:
            return None
        seen.append(request)
        return AWSResponse(request.url, 200, {"content-length": "0"}, _Nothing())

    event = "before-send.s3.HeadObject"
    client.meta.events.register_first(event, catch)
    try:
        client.head_object(Bucket=bucket, Key=_PROBE)
    finally:
        client.meta.events.unregister(event, catch)
    return seen[0]


class _Nothing(io.BytesIO):
    """The empty body of an answer, as urllib3 has it."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        return iter(())


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _proxied(client: Any, url: str) -> bool:
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
            f"ca_bundle: no certificates can be had from {path!r}: {error}", parameter="ca_bundle"
        ) from error


def credentials_of(client: Any) -> Any:
    """Botocore's credentials of a client; None where it has none."""
    return getattr(getattr(client, "_request_signer", None), "_credentials", None)


def _no_keys() -> Keys:
    raise ConfigurationError("anonymous requests are not signed", parameter="anonymous")


class Source:
    """The credentials of a client.

    Args:
        client: botocore's, made for *settings*.
        settings: of the storage.
    """

    def __init__(self, client: Any, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._used = threading.local()
        self._lock = threading.Lock()

    def keys(self) -> Keys:
        """Those of this moment. What is about to expire is renewed, once for all threads.

        Raises:
            ConfigurationError: one cannot be sent.
        """
        frozen = self._used.frozen = credentials_of(self._client).get_frozen_credentials()
        check_sendable("access_key", frozen.access_key)
        check_sendable("secret_key", frozen.secret_key)
        check_sendable("session_token", frozen.token)
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def refresh(self) -> bool:
        """Get new ones although those that this thread used do not look expired; whether there are others now.

        What does not renew itself is looked up again, where it was found: files and variables change under a program.
        """
        credentials = credentials_of(self._client)
        before = getattr(self._used, "frozen", None) or credentials.get_frozen_credentials()
        renew = getattr(credentials, "_protected_refresh", None)
        with getattr(credentials, "_refresh_lock", None) or self._lock:
            # Not by get_frozen_credentials, which takes the lock itself when the end is near.
            if renew is not None:
                if getattr(credentials, "_frozen_credentials", before) == before:
                    renew(is_mandatory=True)
            elif credentials_of(self._client).get_frozen_credentials() == before:
                given = getattr(credentials, "method", None) == "explicit"
                if not given or self._settings.access_key is not None:
                    # As a whole, since others read them meanwhile.
                    found = credentials_now(self._settings)
                    self._client._request_signer._credentials = found or credentials
        return bool(credentials_of(self._client).get_frozen_credentials() != before)


def _emit(client: Any) -> Callable[..., Any] | None:
    """Ask the handlers of "before-send" (moto's, if any) for an answer; None where there are none."""
    found = emitter(client)._handlers.prefix_search("before-send.s3.GetObject")
    if all(module_of(handler).startswith("storage_backend.") for handler in found):
        return None
    return cast("Callable[..., Any]", client.meta.events.emit_until_response)
