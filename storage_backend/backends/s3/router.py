"""Sends requests through our signed HTTP client, unless the boto3 client has custom hooks."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

from storage_backend.backends.s3.boto3_client import make_client
from storage_backend.backends.s3.boto3_handlers import Boto3Handlers, ClockSkew
from storage_backend.backends.s3.boto3_requests import Boto3Requests
from storage_backend.backends.s3.botocore_private import (
    credentials_of,
    handlers_version,
    is_botocore,
    is_plain,
    quick_handlers_version,
)
from storage_backend.backends.s3.endpoint import BucketEndpoint, CredentialSource, endpoint_of
from storage_backend.backends.s3.requests import ObjectRequests
from storage_backend.backends.s3.settings import S3Settings
from storage_backend.backends.s3.signed_requests import SignedRequests
from storage_backend.forks import inherited, no_fork


@dataclass(eq=False)
class _ProcessState:
    """The clients of one process."""

    pid: int
    client: Any
    boto3: Boto3Requests
    signed: SignedRequests | None = None
    handlers: object = field(default_factory=object)  # their version when `signed` was set
    lock: threading.Lock = field(default_factory=threading.Lock)
    finalizer: weakref.finalize[..., RequestRouter] = field(init=False)


class RequestRouter:
    """Creates a boto3 client on first use in each process, and chooses which client sends the frequent requests.

    Args:
        settings: of the storage.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._region = settings.region
        self._state: _ProcessState | None = None
        self._locks: dict[int, threading.RLock] = {}
        self._skew = ClockSkew()

    @property
    def client(self) -> Any:
        """The boto3 client of this process."""
        return self._current_state().client

    @property
    def boto3(self) -> Boto3Requests:
        """All requests, through the boto3 client."""
        return self._current_state().boto3

    @property
    def requests(self) -> ObjectRequests:
        """The frequent requests, by our signed HTTP client where the boto3 client has no custom hooks."""
        state = self._state
        if state is None or state.pid != os.getpid():
            state = self._current_state()
        try:
            version = quick_handlers_version(state.client)
        except AttributeError:  # the caller's own client, or another botocore
            version = None
        if version is not state.handlers:
            self._choose_client(state)  # a Stubber or a user's handler was added or removed
        return state.signed or state.boto3

    def close(self) -> None:
        """Close connections. The next use reopens them."""
        state, self._state = self._state, None
        if state is not None:
            state.finalizer()

    def _choose_client(self, state: _ProcessState) -> None:
        with state.lock:
            if handlers_version(state.client) is not state.handlers:
                state.signed = self._signed_requests(state)
                state.handlers = handlers_version(state.client)

    def _current_state(self) -> _ProcessState:
        state = self._state
        if state is not None and state.pid == os.getpid():
            return state
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._state
            if state is None or state.pid != os.getpid():
                if state is not None:
                    state.finalizer()
                self._state = state = self._new_state()
            return state

    def _new_state(self) -> _ProcessState:
        settings = self._settings
        client = settings.client if settings.client is not None else self._new_client(self._region)
        state = _ProcessState(os.getpid(), client, Boto3Requests(client, settings))
        # botocore's objects form cycles, so their connections would stay open until a garbage collection.
        state.finalizer = weakref.finalize(self, _close_state, state, ours=settings.client is None)
        state.finalizer.atexit = False
        return state

    def _signed_requests(self, state: _ProcessState) -> SignedRequests | None:
        if self._settings.client is not None or not is_plain(state.client):
            return None
        endpoint = endpoint_of(state.client, self._settings)
        if endpoint is None:
            return None
        # A weak reference avoids a cycle: connections are closed with the last reference to the router.
        router_ref = weakref.ref(self)

        def endpoint_in(region: str) -> BucketEndpoint | None:
            router = router_ref()
            return None if router is None else router._endpoint_in(region)

        return SignedRequests(
            endpoint,
            self._settings,
            endpoint_in,
            self._skew,
            verifies_checksums=state.boto3.verifies_checksums,
        )

    def _new_client(self, region: str | None) -> Any:
        with no_fork():  # it imports boto3
            client = make_client(self._settings, region)
        if is_botocore(client) and not self._settings.anonymous:
            if credentials_of(client) is not None:
                # Raises, naming the parameter, if one cannot be sent. Not by the source below, whose `refresh` would take
                # these for the credentials of a later request.
                CredentialSource(client, self._settings).credentials()
            source = CredentialSource(client, self._settings)
            handlers = Boto3Handlers(self._skew, self._settings.clock, source.credentials, source.refresh)
            handlers.register(client)
        return client

    def _endpoint_in(self, region: str) -> BucketEndpoint | None:
        """The endpoint, now that the bucket is known to be in *region*; None if only boto3 can send there."""
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._current_state()
            if region != getattr(state.client.meta, "region_name", None):
                self._region = region
                replaced = state.client
                state.client = self._new_client(region)
                state.boto3 = Boto3Requests(state.client, self._settings)
                _close_client(replaced, ours=self._settings.client is None)
            endpoint = endpoint_of(state.client, self._settings)
            state.handlers = handlers_version(state.client)
            return endpoint


def _close_state(state: _ProcessState, *, ours: bool) -> None:
    """Close the connections; those of a parent process stay untouched. *ours*: whether we created the client."""
    if state.pid != os.getpid():
        inherited().append(state)
        return
    if state.signed is not None:
        state.signed.close()
    _close_client(state.client, ours=ours)


def _close_client(client: Any, *, ours: bool) -> None:
    """Close the idle connections of *client* if it is *ours*; those in use are closed when they are returned."""
    close = getattr(client, "close", None)
    if ours and callable(close):
        close()
