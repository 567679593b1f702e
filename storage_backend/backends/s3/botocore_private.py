"""Reads private attributes of botocore, to decide whether our signed HTTP client can replace the boto3 client.

botocore has no public API for the handlers, certificates and credentials of a client. `.ci/bounds` tests the oldest and the
newest version that we allow; if an attribute is missing, all requests go through boto3, with a warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import cache
from operator import attrgetter
from typing import Any

logger = logging.getLogger(__name__)

_LOOKUP_CACHE = "meta.events._emitter._lookup_cache"
_CREDENTIALS = "_request_signer._credentials"
_ATTRIBUTES = (
    _LOOKUP_CACHE,
    "meta.events._emitter._unique_id_handlers",
    "meta.events._emitter._handlers.prefix_search",
    "_endpoint.http_session._verify",
    "_endpoint.http_session._cert_file",
    _CREDENTIALS,
)
# Called for every request, so implemented in C; they raise AttributeError if an attribute is missing.
quick_handlers_version = attrgetter(_LOOKUP_CACHE)
quick_credentials_of = attrgetter(_CREDENTIALS)

# botocore's events whose handlers can change a request or response ("Extensibility guide", boto3).
_EVENTS = [
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
]
_OPERATIONS = [
    "CopyObject",
    "DeleteObject",
    "DeleteObjects",
    "GetObject",
    "HeadObject",
    "ListObjectsV2",
    "PutObject",
    "UploadPart",
    "UploadPartCopy",
]
# Modules whose handlers our client does not need, or calls itself.
_KNOWN = re.compile(r"(botocore|boto3|s3transfer|moto|storage_backend)(\.|$)")


def is_botocore(client: Any) -> bool:
    """Whether it is a real botocore client, created by anyone."""
    from botocore.client import BaseClient

    return isinstance(client, BaseClient)


def handlers_version(client: Any) -> object:
    """An object that is replaced when handlers are added or removed: the cache of botocore's emitter."""
    try:
        return quick_handlers_version(client)
    except AttributeError:
        return None


def is_stubbed(client: Any) -> bool:
    """Whether a `botocore.stub.Stubber`, or a mock without events, responds instead of the service."""
    events = getattr(getattr(client, "meta", None), "events", None)
    registered = getattr(getattr(events, "_emitter", None), "_unique_id_handlers", None)
    if registered is None:
        # If unknown, the strict checks for a real service matter more than the expectations of a Stubber.
        return events is None
    return any(str(name).startswith("boto_stubber") for name in registered)


def is_plain(client: Any) -> bool:
    """Whether no handlers but those of botocore, moto and this package affect the client's requests."""
    if not is_botocore(client) or type(client).__module__ != "botocore.client":
        return False
    missing = tuple(path for path in _ATTRIBUTES if not _has(client, path))
    if missing:
        _warn(missing)
        return False
    if is_stubbed(client):
        return False
    found = (
        handler
        for event in _EVENTS
        for operation in _OPERATIONS
        for handler in handlers_of(client, f"{event}.s3.{operation}")
    )
    return all(_KNOWN.match(module_of(handler)) for handler in found)


def handlers_of(client: Any, event: str) -> Iterable[Any]:
    """The handlers of *event*."""
    found: Iterable[Any] = client.meta.events._emitter._handlers.prefix_search(event)
    return found


def module_of(handler: Any) -> str:
    """The module that defines a handler."""
    function = getattr(handler, "func", handler)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def certificates_of(client: Any) -> tuple[bool | str | None, Any]:
    """The `verify` setting (False, True, or a path) and the client certificate."""
    session = client._endpoint.http_session
    return session._verify, session._cert_file


def credentials_of(client: Any) -> Any:
    """The botocore credentials of a client; None if it has none."""
    return getattr(getattr(client, "_request_signer", None), "_credentials", None)


def replace_credentials(client: Any, credentials: Any) -> None:
    """Make *client* sign with other credentials."""
    client._request_signer._credentials = credentials


def _has(client: Any, path: str) -> bool:
    try:
        attrgetter(path)(client)
    except AttributeError:
        return False
    return True


@cache
def _warn(missing: tuple[str, ...]) -> None:
    """Log only once: it concerns every storage."""
    import botocore

    logger.warning(
        "botocore %s has no %s, which our own HTTP client needs: all S3 requests go through boto3, which is slower",
        botocore.__version__,
        ", ".join(f"client.{path}" for path in missing),
    )
