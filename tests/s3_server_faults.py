"""Faults: what the S3 server of the tests does wrong on purpose, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from tests.s3_server_wire import Request, Response

Kind = Literal[
    "reset",
    "stall",
    "reply",
    "error_200",
    "truncate",
    "corrupt_request",
    "corrupt_response",
    "ignore_range",
    "stale",
    "alter",
    "raw",
]
Moment = Literal["head", "request_body", "before_applied", "applied", "response_head", "response_body"]
Stale = Literal["close", "reset", "next"]

CODES = {429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing done wrong with one request. Made by the functions below, which say what the fields mean."""

    kind: Kind
    moment: Moment = "head"
    after: int = 0
    seconds: float = 0.0
    status: int = 500
    code: str = "InternalError"
    retry_after: str | None = None
    xml: bool = True
    applied: bool = False
    padding: int = 0
    chunked: bool = False
    stale: Stale = "close"
    change: Callable[..., Any] | None = None
    ranges: bool = True


def reset(moment: Moment, after: int = 0) -> Fault:
    """Reset the connection (RST).

    Args:
        moment: "head": the head of the request was read, nothing of its body; "request_body": *after* bytes of the
            body were read, or all if it is shorter, and nothing is applied; "before_applied": the whole body was read,
            and nothing is applied; "applied": it was applied, and not a byte of the answer is sent; "response_head"
            and "response_body": *after* bytes of the answer's head, or of its body, were sent, or all if it is shorter.
        after: bytes.
    """
    return Fault("reset", moment=moment, after=after)


def stall(seconds: float, moment: Moment = "response_head", after: int = 0) -> Fault:
    """Do nothing for *seconds* at *moment* (as in `reset`), then go on as if nothing had been. `stop` ends it."""
    return Fault("stall", moment=moment, after=after, seconds=seconds)


def reply(
    status: int,
    code: str | None = None,
    *,
    retry_after: str | None = None,
    xml: bool = True,
    applied: bool = False,
    early: bool = False,
) -> Fault:
    """Answer with an error.

    Args:
        status: 500, 503, 429 or any other.
        code: S3's, in the XML; by default InternalError, SlowDown and TooManyRequests for those three.
        retry_after: the header's value: seconds or a date.
        xml: without it the body is a proxy's line of HTML.
        applied: the request has its effect all the same.
        early: the answer is sent before the body is read, and the connection closed; then `applied` means nothing.
    """
    moment: Moment = "head" if early else "before_applied"
    code = code or CODES.get(status, "InternalError")
    return Fault("reply", moment, status=status, code=code, retry_after=retry_after, xml=xml, applied=applied)


def error_200(code: str = "InternalError", *, applied: bool = False, padding: int = 0) -> Fault:
    """Answer 200 with an `<Error>` document, as CopyObject and CompleteMultipartUpload do when they fail late.

    Args:
        code: S3's.
        applied: the request has its effect all the same.
        padding: spaces between the XML declaration and the document, which S3 sends to keep the connection alive.
    """
    return Fault("error_200", code=code, applied=applied, padding=padding)


def truncate(after: int, *, chunked: bool = False) -> Fault:
    """Send only *after* bytes of the answer's body.

    Args:
        after: bytes; all if the body is shorter.
        chunked: the answer has no Content-Length and ends properly after those bytes, so that nothing in HTTP tells
            that it is short. Otherwise Content-Length names the whole, and the connection is closed (FIN) early.
    """
    return Fault("truncate", after=after, chunked=chunked)


def corrupt_request(at: int = 0) -> Fault:
    """Change the byte *at* of the body that arrived (counted round if it is shorter), before it is checked."""
    return Fault("corrupt_request", after=at)


def corrupt_response(at: int = 0) -> Fault:
    """Change the byte *at* of the answer's body (counted round if it is shorter)."""
    return Fault("corrupt_response", after=at)


def ignore_range() -> Fault:
    """Answer a ranged GetObject with 200 and the whole object."""
    return Fault("ignore_range", ranges=False)


def stale(how: Stale = "close") -> Fault:
    """Answer properly, as if the connection were kept, and then lose it.

    Args:
        how: "close": it is closed (FIN) at once; "reset": it is reset at once; "next": it looks healthy until the
            first byte of the next request arrives, which is reset unread.
    """
    return Fault("stale", stale=how)


def alter(change: Callable[[Response], Response], *, ranges: bool = True) -> Fault:
    """Do what is asked, and answer with what *change* makes of the proper answer; without *ranges*, of the whole object."""
    return Fault("alter", moment="applied", change=change, ranges=ranges)


def raw(change: Callable[[bytes, bytes], Iterable[bytes]], *, ranges: bool = True) -> Fault:
    """As `alter`, but send the pieces that *change* makes of the answer's head and framed body, and close."""
    return Fault("raw", moment="applied", change=change, ranges=ranges)


@dataclass(frozen=True, slots=True)
class Fired:
    """A fault that was done, and the request that had it."""

    fault: Fault
    operation: str
    bucket: str
    key: str


@dataclass(slots=True)
class _Rule:
    fault: Fault
    operation: str | None
    key: str | None
    reused: bool | None
    skip: int
    left: int | None

    def takes(self, request: Request) -> bool:
        if self.operation is not None and self.operation != request.operation:
            return False
        if self.key is not None and self.key != request.key:
            return False
        if self.reused is not None and self.reused != request.reused:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.left is not None:
            self.left -= 1
        return True


class Faults:
    """The plan: which requests have which fault. Thread-safe.

    Attributes:
        choose: asked for each request that no rule takes; `Request` has operation, bucket, key, query and headers.
            It may be called by several threads at once.
        fired: what was done, in order.
    """

    def __init__(self) -> None:
        self.choose: Callable[[Request], Fault | None] | None = None
        self.fired: list[Fired] = []
        self._rules: list[_Rule] = []
        self._resets = 0
        self._lock = threading.Lock()

    def add(
        self,
        fault: Fault,
        operation: str | None = None,
        *,
        key: str | None = None,
        reused: bool | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> None:
        """Have requests that match meet *fault*; a request meets one at most, of the rule that was added first.

        Args:
            fault: what to do.
            operation: an S3 operation's name, such as "PutObject"; None is any.
            key: the object's; None is any.
            reused: whether the connection must have served a request before; None is either.
            nth: the first of the matching requests that has it; 1 is the next.
            times: how many have it from then on; None is all.
        """
        with self._lock:
            self._rules.append(_Rule(fault, operation, key, reused, nth - 1, times))

    def reset_connections(self, count: int) -> None:
        """Reset the next *count* connections as soon as they are accepted."""
        with self._lock:
            self._resets = count

    def clear(self) -> None:
        """Behave from now on. `fired` is kept."""
        with self._lock:
            self._rules.clear()
            self._resets = 0
            self.choose = None

    @property
    def pending(self) -> int:
        """The rules that are not used up."""
        with self._lock:
            return len(self._rules)

    def resets_connection(self) -> bool:
        """Whether the connection just accepted is to be reset."""
        with self._lock:
            if not self._resets:
                return False
            self._resets -= 1
            return True

    def take(self, request: Request) -> Fault | None:
        """The fault that *request* meets, if any."""
        choose = self.choose
        if not self._rules and choose is None:
            return None
        with self._lock:
            fault = self._from_rules(request)
        if fault is None and choose is not None:
            fault = choose(request)
        if fault is not None:
            self.fired.append(Fired(fault, request.operation, request.bucket, request.key))
        return fault

    def _from_rules(self, request: Request) -> Fault | None:
        for rule in self._rules:
            if rule.takes(request):
                if rule.left == 0:
                    self._rules.remove(rule)
                return rule.fault
        return None
