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
    """What belongs to one process."""

    pid: int
    client: Any
    boto3: Boto3Requests
    signed: SignedRequests | None = None
    handlers: object = field(default_factory=object)  # of the client, when `signed` was decided
    lock: threading.Lock = field(default_factory=threading.Lock)
    finalizer: weakref.finalize[..., RequestRouter] = field(init=False)


class RequestRouter:
    """Makes the boto3 client when first needed, in each process its own, and decides which way requests go.

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
        return self._now().client

    @property
    def boto3(self) -> Boto3Requests:
        """Every request, through the boto3 client."""
        return self._now().boto3

    @property
    def requests(self) -> ObjectRequests:
        """The frequent requests, by our signed HTTP client where the boto3 client has no custom hooks."""
        state = self._state
        if state is None or state.pid != os.getpid():
            state = self._now()
        try:
            version = quick_handlers_version(state.client)
        except AttributeError:  # the caller's own client, or another botocore
            version = None
        if version is not state.handlers:
            self._decide(state)  # a Stubber or a user's handler has come or gone
        return state.signed or state.boto3

    def close(self) -> None:
        """Close connections. Used again, it begins anew."""
        state, self._state = self._state, None
        if state is not None:
            state.finalizer()

    def _decide(self, state: _ProcessState) -> None:
        with state.lock:
            if handlers_version(state.client) is not state.handlers:
                state.signed = self._signed_requests(state)
                state.handlers = handlers_version(state.client)

    def _now(self) -> _ProcessState:
        state = self._state
        if state is not None and state.pid == os.getpid():
            return state
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._state
            if state is None or state.pid != os.getpid():
                if state is not None:
                    state.finalizer()
                self._state = state = self._opened()
            return state

    def _opened(self) -> _ProcessState:
        settings = self._settings
        client = settings.client if settings.client is not None else self._made(self._region)
        state = _ProcessState(os.getpid(), client, Boto3Requests(client, settings))
        # botocore's objects refer to each other, so that their connections would wait for the garbage collector.
        state.finalizer = weakref.finalize(self, _close_state, state, ours=settings.client is None)
        state.finalizer.atexit = False
        return state

    def _signed_requests(self, state: _ProcessState) -> SignedRequests | None:
        if self._settings.client is not None or not is_plain(state.client):
            return None
        endpoint = endpoint_of(state.client, self._settings)
        if endpoint is None:
            return None
        # Not in a cycle with this router: its connections are closed with the last reference to it.
        ourselves = weakref.ref(self)

        def endpoint_in(region: str) -> BucketEndpoint | None:
            router = ourselves()
            return None if router is None else router._endpoint_in(region)

        return SignedRequests(
            endpoint,
            self._settings,
            endpoint_in,
            self._skew,
            verifies_checksums=state.boto3.verifies_checksums,
        )

    def _made(self, region: str | None) -> Any:
        with no_fork():  # it imports boto3
            client = make_client(self._settings, region)
        if is_botocore(client) and not self._settings.anonymous:
            if credentials_of(client) is not None:
                # Raises where one of them cannot be sent, and names the parameter.
                CredentialSource(client, self._settings).credentials()
            source = CredentialSource(client, self._settings)
            handlers = Boto3Handlers(self._skew, self._settings.clock, source.credentials, source.refresh)
            handlers.register(client)
        return client

    def _endpoint_in(self, region: str) -> BucketEndpoint | None:
        """The endpoint, now that the bucket is known to be in *region*; None if only boto3 can send there."""
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._now()
            if region != getattr(state.client.meta, "region_name", None):
                self._region = region
                replaced = state.client
                state.client = self._made(region)
                state.boto3 = Boto3Requests(state.client, self._settings)
                _close_client(replaced, ours=self._settings.client is None)
            endpoint = endpoint_of(state.client, self._settings)
            state.handlers = handlers_version(state.client)
            return endpoint


def _close_state(state: _ProcessState, *, ours: bool) -> None:
    """Close the connections; a parent's are neither used nor closed. *ours* is a client that we have made."""
    if state.pid != os.getpid():
        inherited().append(state)
        return
    if state.signed is not None:
        state.signed.close()
    _close_client(state.client, ours=ours)


def _close_client(client: Any, *, ours: bool) -> None:
    """Close the idle connections of *client*; those in use are closed when they are given back."""
    close = getattr(client, "close", None)
    if ours and callable(close):
        close()
