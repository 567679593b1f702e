"""Creates boto3 clients from the settings."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from storage_backend.backends.s3.botocore_private import module_of
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.backends.s3.xml_documents import MOST_DOCUMENT, too_long
from storage_backend.errors import MissingClientError
from storage_backend.paths import expanded
from storage_backend.secrets import Secret


def make_client(settings: S3Settings, region: str | None) -> Any:
    """A new client with its own session, since boto3's default session keeps the credentials that it found first."""
    try:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"boto3", "botocore"}:
            raise
        raise MissingClientError(
            f"{settings.location} needs boto3 ({error}): pip install boto3", backend=settings.location
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
        # Without it boto3 signs URLs by the old version 2; an ARN may need version 4a.
        options["signature_version"] = "s3v4"
    if settings.endpoint_url is not None and "AWS_REQUEST_CHECKSUM_CALCULATION" not in os.environ:
        # boto3's default fails with services that do not support these checksums. We send ours to those that do.
        options["request_checksum_calculation"] = "when_required"
        options["response_checksum_validation"] = "when_required"
    given = {
        # boto3 itself ignores AWS_REGION.
        "region_name": region or os.environ.get("AWS_REGION") or None,
        "endpoint_url": settings.endpoint_url,
        "verify": expanded(settings.ca_bundle),
    }
    keywords = {name: value for name, value in given.items() if value is not None}
    if settings.access_key is None and settings.profile is None and module_of(boto3.client) != "boto3":
        # Replaced by its user, for example by a mock.
        return boto3.client("s3", config=Config(**options), **keywords)
    session = boto3.Session(botocore_session=_session(settings), profile_name=settings.profile)
    return _limit_documents(session.client("s3", config=Config(**options), **keywords))


def credentials_now(settings: S3Settings) -> Any:
    """The botocore credentials that a new client would have; None without any."""
    return _session(settings).get_credentials()


def _session(settings: S3Settings) -> Any:
    """A new botocore session, with the arguments of `boto3.setup_default_session`."""
    import boto3
    import botocore.session
    from botocore.handlers import BUILTIN_HANDLERS

    default = getattr(boto3.DEFAULT_SESSION, "_session", None)
    arguments = {} if default is None or settings.profile is not None else default.instance_variables()
    core = botocore.session.Session(
        event_hooks=copy.copy(_hooks(len(BUILTIN_HANDLERS))),
        include_builtin_handlers=False,
        profile=settings.profile or arguments.pop("profile", None),
    )
    for name, value in arguments.items():
        core.set_config_variable(name, value)
    core.register_component("data_loader", _models(core.get_config_variable("data_path")))
    given = getattr(default, "_credentials", None)
    if settings.access_key is not None:
        core.set_credentials(*map(_value, settings.secrets))
    elif settings.profile is None and given is not None and given.method == "explicit":
        core.set_credentials(given.access_key, given.secret_key, given.token)
    return core


def _limit_documents(client: Any) -> Any:
    """Make *client* read at most `MOST_DOCUMENT` bytes of each response except the content of objects; return it."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    if session is not None:
        session.send = partial(_send_and_limit, session.send)
    return client


def _send_and_limit(send: Callable[[Any], Any], request: Any) -> Any:
    is_content = request.stream_output
    request.stream_output = True  # else `send` reads a response of any length
    response = send(request)
    if not is_content or response.status_code >= 300:
        response._content = _content_of(response)
    return response


def _content_of(response: Any) -> bytes:
    """The content as `AWSResponse.content`, with the errors of `URLLib3Session.send`."""
    from botocore.exceptions import HTTPClientError, ReadTimeoutError
    from urllib3.exceptions import HTTPError
    from urllib3.exceptions import ReadTimeoutError as LateError

    content = bytearray()
    try:
        for piece in response.raw.stream():
            content += piece
            if len(content) > MOST_DOCUMENT:
                raise too_long(content)
    except BaseException as error:
        response.raw.close()
        if isinstance(error, LateError):
            raise ReadTimeoutError(endpoint_url=response.url, error=error) from error
        if isinstance(error, HTTPError):
            raise HTTPClientError(error=error) from error
        raise
    return bytes(content)


@cache
def _hooks(count: int) -> Any:  # noqa: ARG001 - moto adds handlers when it is imported
    """The handlers of a new session, cached by botocore's *count* of them: registering is half of a session's cost."""
    from botocore.hooks import HierarchicalEmitter
    from botocore.session import Session

    hooks = HierarchicalEmitter()
    Session(event_hooks=hooks)
    return hooks


class _Paths(list[str]):
    """The search path of a loader, without the duplicates that each boto3 session appends."""

    def append(self, path: str, /) -> None:
        if path not in self:
            super().append(path)


@cache
def _models(data_path: str | None) -> Any:
    """A loader of botocore's service descriptions for all sessions: parsing them is most of a client's cost."""
    from botocore.loaders import Loader

    given = data_path.split(os.pathsep) if data_path else []
    return Loader(_Paths(str(Path(os.path.expandvars(path)).expanduser()) for path in given))


def _value(secret: Secret | None) -> str | None:
    return None if secret is None else secret.value()


def is_amazon(client: Any) -> bool:
    """Whether the client's endpoint is Amazon's."""
    endpoint = getattr(getattr(client, "meta", None), "endpoint_url", None)
    host = urlsplit(endpoint).hostname if isinstance(endpoint, str) else None
    return re.search(r"(^|\.)amazonaws\.com(\.cn)?$", host or "") is not None
