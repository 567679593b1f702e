"""The private attributes of botocore that decide whether our signed HTTP client may take boto3's place.

botocore has no public way to tell which handlers, certificates and credentials a client uses. `.ci/bounds` tries the oldest and
the newest version that we allow; where an attribute is missing, requests go through boto3 and a warning says so.
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
# For every request, functions in C; they raise AttributeError where something is missing.
quick_handlers_version = attrgetter(_LOOKUP_CACHE)
quick_credentials_of = attrgetter(_CREDENTIALS)

# The events of botocore by which a request can be changed on its way ("Extensibility guide", boto3).
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
# Modules whose handlers our client does without, or calls itself.
_KNOWN = re.compile(r"(botocore|boto3|s3transfer|moto|storage_backend)(\.|$)")


def is_botocore(client: Any) -> bool:
    """Whether it is a client of botocore's, whoever made it, and not a stand-in."""
    from botocore.client import BaseClient

    return isinstance(client, BaseClient)


def handlers_version(client: Any) -> object:
    """Another object after handlers were added or removed, since botocore's emitter then replaces its cache."""
    try:
        return quick_handlers_version(client)
    except AttributeError:
        return None


def is_stubbed(client: Any) -> bool:
    """Whether a `botocore.stub.Stubber`, or a mock that has no events, answers in the service's place."""
    events = getattr(getattr(client, "meta", None), "events", None)
    registered = getattr(getattr(events, "_emitter", None), "_unique_id_handlers", None)
    if registered is None:
        # If this cannot be told, strict checks of a real service matter more than the expectations of a Stubber.
        return events is None
    return any(str(name).startswith("boto_stubber") for name in registered)


def is_plain(client: Any) -> bool:
    """Whether only botocore itself, or moto, has a say in the client's requests."""
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
    """The handlers that *event* calls."""
    found: Iterable[Any] = client.meta.events._emitter._handlers.prefix_search(event)
    return found


def module_of(handler: Any) -> str:
    """The module in which a handler was written."""
    function = getattr(handler, "func", handler)
    return str(getattr(function, "__module__", None) or type(function).__module__)


def certificates_of(client: Any) -> tuple[bool | str | None, Any]:
    """What the client verifies servers by, False for nothing and True for the usual authorities; and its own certificate."""
    session = client._endpoint.http_session
    return session._verify, session._cert_file


def credentials_of(client: Any) -> Any:
    """Botocore's credentials of a client; None where it has none."""
    return getattr(getattr(client, "_request_signer", None), "_credentials", None)


def replace_credentials(client: Any, credentials: Any) -> None:
    """Have *client* sign with other credentials from now on."""
    client._request_signer._credentials = credentials


def _has(client: Any, path: str) -> bool:
    try:
        attrgetter(path)(client)
    except AttributeError:
        return False
    return True


@cache
def _warn(missing: tuple[str, ...]) -> None:
    """Once: the same client library is found by every storage."""
    import botocore

    logger.warning(
        "botocore %s has no %s, which our own HTTP client relies on: all S3 requests go through boto3, which is slower",
        botocore.__version__,
        ", ".join(f"client.{path}" for path in missing),
    )
