"""Service: whom requests go through in this process: the wire where the client is a plain one, else the client."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

from storage_backend.backends.s3.calls import Calls
from storage_backend.backends.s3.client import ClientCalls
from storage_backend.backends.s3.clients import (
    handlers_of,
    is_amazon,
    is_botocore,
    is_plain,
    is_stubbed,
    made,
)
from storage_backend.backends.s3.mending import Mender, Skew
from storage_backend.backends.s3.places import Source, credentials_of, place_of
from storage_backend.backends.s3.settings import Settings
from storage_backend.backends.s3.wire import Place, Wire
from storage_backend.forks import inherited, no_fork


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
    finalizer: weakref.finalize[..., Service] = field(init=False)


class Service:
    """Makes the client when first needed, in each process its own, and gives the calls.

    Args:
        settings: of the storage.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._region = settings.region
        self._state: _State | None = None
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
        if handlers_of(state.client) is not state.handlers:
            # This is the first request, or somebody hooked in (a Stubber, an own handler), or a hook is gone.
            with state.lock:
                if handlers_of(state.client) is not state.handlers:
                    state.wire = self._wire(state)
                    state.handlers = handlers_of(state.client)
        return state.rare if state.wire is None else state.wire

    @property
    def explains(self) -> bool:
        """Whether a second request may be made to learn why a first failed: not of a mock, which expects what it expects."""
        state = self._now()
        return state.wire is not None or (is_botocore(state.client) and not is_stubbed(state.client))

    @property
    def vouches(self) -> bool:
        """Whether the service is Amazon's, known to refuse a wrong checksum."""
        return self._now().vouches

    def close(self) -> None:
        """Let go of connections. Used again, it begins anew."""
        state, self._state = self._state, None
        if state is not None:
            state.finalizer()

    def _now(self) -> _State:
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

    def _opened(self) -> _State:
        settings = self._settings
        client = settings.client if settings.client is not None else self._made(self._region)
        state = _State(os.getpid(), client, self._rare(client))
        state.vouches = is_amazon(client)
        # botocore's objects refer to each other, so that their connections would wait for the collector.
        state.finalizer = weakref.finalize(self, _let_go, state, ours=settings.client is None)
        state.finalizer.atexit = False
        return state

    def _wire(self, state: _State) -> Wire | None:
        if self._settings.client is not None or not is_plain(state.client):
            return None
        place = place_of(state.client, self._settings)
        if place is None:
            return None
        # Not in a cycle with this: its connections go with the last reference to us.
        ourselves = weakref.ref(self)

        def moved(region: str) -> Place | None:
            service = ourselves()
            return None if service is None else service._moved(region)

        return Wire(place, self._settings, moved, self._skew)

    def _rare(self, client: Any) -> ClientCalls:
        settings = self._settings
        return ClientCalls(client, settings.bucket, settings.request_payer, ours=settings.client is None)

    def _made(self, region: str | None) -> Any:
        with no_fork():  # it imports boto3
            client = made(self._settings, region)
        if is_botocore(client) and not self._settings.anonymous:
            if credentials_of(client) is not None:
                Source(client, self._settings).keys()  # they can be sent, or the parameter is named
            source = Source(client, self._settings)
            Mender(self._skew, self._settings.clock, source.keys, source.refresh).register(client)
        return client

    def _moved(self, region: str) -> Place | None:
        """Where requests go now that the bucket is known to be in *region*; None if that is no news."""
        with self._locks.setdefault(os.getpid(), threading.RLock()):
            state = self._now()
            if region != getattr(state.client.meta, "region_name", None):
                self._region = region
                replaced = state.client
                state.client = self._made(region)
                state.rare = self._rare(state.client)
                _close(replaced, ours=self._settings.client is None)
            place = place_of(state.client, self._settings)
            state.handlers = handlers_of(state.client)
            return place


def _let_go(state: _State, *, ours: bool) -> None:
    """Close the connections; a parent's are neither used nor closed. *ours* is a client that we have made."""
    if state.pid != os.getpid():
        inherited().append(state)
        return
    if state.wire is not None:
        state.wire.close()
    _close(state.client, ours=ours)


def _close(client: Any, *, ours: bool) -> None:
    """Close what *client* has open that nobody uses just now; what is in use is closed when it is given back."""
    close = getattr(client, "close", None)
    if ours and callable(close):
        close()
