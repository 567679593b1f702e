"""Responses of botocore's "before-send" handlers, so that moto also works with our own HTTP client."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any

from typing_extensions import Buffer

from storage_backend.backends.s3.endpoint import BucketEndpoint
from storage_backend.backends.s3.file_parts import FilePart
from storage_backend.backends.s3.responses import S3Response


def handler_response(
    endpoint: BucketEndpoint,
    event: str,
    line: tuple[str, str],
    headers: Mapping[str, str],
    body: bytes | memoryview | FilePart,
) -> S3Response | None:
    """The response of a handler of *event*, if any; *line* is the method and target of the request."""
    from botocore.awsrequest import AWSPreparedRequest, HeadersDict

    method, target = line
    content = body.read_all() if isinstance(body, FilePart) else bytes(body)
    sent = HeadersDict({**headers, "content-length": str(len(content))} if content else dict(headers))
    request = AWSPreparedRequest(method, endpoint.origin + target, sent, content or None, stream_output=True)
    assert endpoint.emit is not None
    # moto is not thread-safe, and a batch sends requests from several threads.
    with _one_at_a_time():
        _, response = endpoint.emit(event, request=request)
        return None if response is None else _HandlerResponse(response)


@cache
def _one_at_a_time() -> threading.RLock:
    """Held during a fork: a lock of moto held by another thread would stay locked in the child."""
    lock = threading.RLock()
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class _HandlerResponse:
    """A botocore AWSResponse as an `S3Response`."""

    def __init__(self, response: Any) -> None:
        self.status = int(response.status_code)
        self.headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
        content = b"".join(response.raw.stream())
        self.length: int | None = len(content)
        self._content = io.BytesIO(content)

    def read(self, size: int = -1, /) -> bytes:
        return self._content.read(size)

    def readinto(self, buffer: Buffer, /) -> int:
        return self._content.readinto(buffer)

    def drain(self, at_most: int) -> bool:  # noqa: ARG002 - as an S3Response
        return True

    def close(self) -> None:
        pass
