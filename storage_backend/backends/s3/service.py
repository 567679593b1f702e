"""Service: who we are and where we talk, as boto3 decides it; and whether requests may go over the wire."""

from __future__ import annotations

import io
import os
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from storage_backend.backends.s3.calls import Calls
from storage_backend.backends.s3.client import ClientCalls
from storage_backend.backends.s3.mending import SCOPE, Mender, Skew
from storage_backend.backends.s3.pool import Pool
from storage_backend.backends.s3.settings import Settings
from storage_backend.backends.s3.signing import Keys, Signer
from storage_backend.backends.s3.wire import Place, Wire
from storage_backend.errors import ConfigurationError, MissingClientError
from storage_backend.secrets import Secret

# The events of botocore by which a request can be changed on its way ("Extensibility guide", boto3).
_EVENTS = (
    "provide-client-params",
    "before-parameter-build",
    "before-endpoint-resolution",
    "before-call",
    "request-created",
    "choose-signer",
    "before-sign",
    "before-send",
    "response-received",
    "needs-retry",
    "after-call",
)
_OPERATIONS = (
    "CopyObject",
    "DeleteObject",
    "DeleteObjects",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "PutObject",
    "UploadPart",
    "UploadPartCopy",
)
_OURS = re.compile(
    r"(botocore|boto3|s3transfer|moto|storage_backend)(\.|$)"
)  # whose handlers the wire does without, or calls itself


@dataclass(eq=False)
class _State:
    """What belongs to one process."""

    pid: int
    client: Any
    rare: ClientCalls
    wire: Wire | None = None
    handlers: object = None  # that the wire was judged by
    vouches: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Service:
    """Makes the client when first needed, in each process its own, and gives the calls.

    Args:
        settings: of the storage.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._region = settings.region
        self._state: _State | None = None
        self._abandoned: list[_State] = []
        self._locks: dict[int, threading.RLock] = {}
        self._skew = Skew()

    @property
    def client(self) -> Any:
        """The boto3 client of this process."""
        return self._now().client

    @property
    def rare(self) -> ClientCalls:
        """Every request, through the client."""
        return self._now().rare

    @property
    def calls(self) -> Calls:
        """The frequent requests, over the wire where the client is a plain one."""
        state = self._now()
        if _handlers(state.client) is not state.handlers:
            # This is the first request, or somebody hooked in (a Stubber, an own handler), or a hook is gone.
            with state.lock:
                if _handlers(state.client) is not state.handlers:
                    state.wire = self._wire(state)
                    state.handlers = _handlers(state.client)
        return state.rare if state.wire is None else state.wire

    @property
    def explains(self) -> bool:
        """Whether a second request may be made to learn why a first failed: not of a mock, which expects what it expects."""
        state = self._now()
        return state.wire is not None or (_is_botocore(state.client) and not _is_stubbed(state.client))

    @property
    def vouches(self) -> bool:
        """Whether the service is Amazon's, known to refuse a wrong checksum."""
        return self._now().vouches

    def close(self) -> None:
        """Let go of connections. Used again, it begins anew."""
        state, self._state = self._state, None
        if state is None or state.pid != os.getpid():
            if state is not None:
                self._abandoned.append(state)
            return
        if state.wire is not None:
            state.wire.close()
        close = getattr(state.client, "close", None)
        if self._settings.client is None and callable(close):
            close()

    def _now(self) -> _State:
        state = self._state
        if state is not None and state.pid == os.getpid():
            return state
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._state
            if state is None or state.pid != os.getpid():
                if state is not None:
                    # A forked child: its parent's connections are neither used nor closed.
                    self._abandoned.append(state)
                self._state = state = self._opened()
            return state

    def _opened(self) -> _State:
        settings = self._settings
        client = settings.client if settings.client is not None else self._made(self._region)
        state = _State(os.getpid(), client, ClientCalls(client, settings.bucket, settings.request_payer))
        state.vouches = _is_amazon(client)
        return state

    def _wire(self, state: _State) -> Wire | None:
        if self._settings.client is not None or not _is_plain(state.client):
            return None
        place = _place(state.client, self._settings)
        return None if place is None else Wire(place, self._settings, self._moved, self._skew)

    def _made(self, region: str | None) -> Any:
        client = _made(self._settings, region)
        if _is_botocore(client) and not self._settings.anonymous:
            source = _Source(_credentials(client))
            Mender(self._skew, self._settings.clock, source.keys, source.refresh).register(client)
        return client

    def _moved(self, region: str) -> Place | None:
        """Where requests go now that the bucket is known to be in *region*; None if that is no news."""
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._now()
            if region != getattr(state.client.meta, "region_name", None):
                self._region = region
                state.client = self._made(region)
                state.rare = ClientCalls(state.client, self._settings.bucket, self._settings.request_payer)
            place = _place(state.client, self._settings)
            state.handlers = _handlers(state.client)
            return place


def _made(settings: Settings, region: str | None) -> Any:
    """A client: boto3's own, or one of a session where credentials or a profile are given."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"boto3", "botocore"}:
            raise
        raise MissingClientError(
            f"{settings.location} needs boto3: pip install 'storage-backend[s3]'"
        ) from error
    options: dict[str, Any] = {
        "retries": {"mode": "standard", "total_max_attempts": settings.attempts},
        "max_pool_connections": max(10, settings.max_concurrency),
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.io_timeout,
        "s3": {
            "addressing_style": settings.addressing_style,
            "use_accelerate_endpoint": settings.accelerate,
        },
    }
    if settings.anonymous:
        options["signature_version"] = UNSIGNED
    elif not settings.bucket.startswith("arn:"):
        # Without it URLs are signed by the old version 2; an ARN may need version 4a.
        options["signature_version"] = "s3v4"
    if settings.endpoint_url is not None and "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
        # boto3's own default breaks services that do not know these checksums; ours are sent where they are known.
        options["request_checksum_calculation"] = "when_required"
        options["response_checksum_validation"] = "when_required"
    given = {
        # boto3 itself does not look at AWS_REGION.
        "region_name": region or os.environ.get("AWS_REGION") or None,
        "endpoint_url": settings.endpoint_url,
        "verify": settings.ca_bundle,
    }
    keywords = {name: value for name, value in given.items() if value is not None}
    if settings.access_key is None and settings.profile is None:
        return boto3.client("s3", config=Config(**options), **keywords)
    session = boto3.Session(
        aws_access_key_id=_value(settings.access_key),
        aws_secret_access_key=_value(settings.secret_key),
        aws_session_token=_value(settings.session_token),
        profile_name=settings.profile,
    )
    return session.client("s3", config=Config(**options), **keywords)


def _value(secret: Secret | None) -> str | None:
    return None if secret is None else secret.value()


def _is_botocore(client: Any) -> bool:
    from botocore.client import BaseClient

    return isinstance(client, BaseClient)


def _is_amazon(client: Any) -> bool:
    endpoint = getattr(getattr(client, "meta", None), "endpoint_url", None)
    host = urlsplit(endpoint).hostname if isinstance(endpoint, str) else None
    return re.search(r"(^|\.)amazonaws\.com(\.cn)?$", host or "") is not None


def _emitter(client: Any) -> Any:
    return getattr(getattr(getattr(client, "meta", None), "events", None), "_emitter", None)


def _handlers(client: Any) -> object:
    """Something that is another object once handlers were added or removed; the emitter makes a new cache each time."""
    return getattr(_emitter(client), "_lookup_cache", None)


def _is_stubbed(client: Any) -> bool:
    registered = getattr(_emitter(client), "_unique_id_handlers", None)
    return registered is None or any(str(name).startswith("boto_stubber") for name in registered)


def _is_plain(client: Any) -> bool:
    """Whether nothing but botocore itself (or moto, which is asked) has a say in its requests."""
    if not _is_botocore(client) or type(client).__module__ != "botocore.client" or _is_stubbed(client):
        return False
    search = getattr(getattr(_emitter(client), "_handlers", None), "prefix_search", None)
    if search is None or _handlers(client) is None:
        return False
    found = (
        handler
        for event in _EVENTS
        for operation in _OPERATIONS
        for handler in search(f"{event}.s3.{operation}")
    )
    return all(_OURS.match(_module(handler)) for handler in found)


def _module(handler: Any) -> str:
    function = getattr(handler, "func", handler)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def _place(client: Any, settings: Settings) -> Place | None:
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
    credentials = _credentials(client)
    unknown = (tls and not verify and not isinstance(verify, str)) or getattr(session, "_cert_file", None)
    if unknown or (credentials is None and not settings.anonymous) or _proxied(client, request.url):
        return None
    source = _Source(credentials)
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
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ConfigurationError(
            f"ca_bundle: no certificates can be had from {path!r}: {error}", parameter="ca_bundle"
        ) from error


def _credentials(client: Any) -> Any:
    return getattr(getattr(client, "_request_signer", None), "_credentials", None)


def _no_keys() -> Keys:
    raise ConfigurationError("anonymous requests are not signed", parameter="anonymous")


class _Source:
    """The credentials of a client.

    Args:
        credentials: botocore's.
    """

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self._used = threading.local()

    def keys(self) -> Keys:
        """Those of this moment. What is about to expire is renewed, once for all threads."""
        frozen = self._used.frozen = self._credentials.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def refresh(self) -> bool:
        """Get new ones although those that this thread used do not look expired; whether there are others now."""
        renew = getattr(self._credentials, "_protected_refresh", None)
        lock = getattr(self._credentials, "_refresh_lock", None)
        if renew is None or lock is None:
            return False
        before = getattr(self._used, "frozen", None) or self._credentials.get_frozen_credentials()
        with lock:
            # Not by get_frozen_credentials, which takes the lock itself when the end is near.
            if getattr(self._credentials, "_frozen_credentials", before) == before:
                renew(is_mandatory=True)
        return bool(self._credentials.get_frozen_credentials() != before)


def _emit(client: Any) -> Callable[..., Any] | None:
    """Ask the handlers of "before-send" (moto's, if any) for an answer; None where there are none."""
    found = _emitter(client)._handlers.prefix_search("before-send.s3.GetObject")
    if all(_module(handler).startswith("storage_backend.") for handler in found):
        return None
    return cast("Callable[..., Any]", client.meta.events.emit_until_response)
