"""Spool: a queue of actions that spills to disk, so that planning runs ahead without holding the plan in memory."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from storage_backend.info import ObjectInfo
from storage_backend.transfer.fingerprint import microseconds
from storage_backend.transfer.planning import Action

HELD = 4096  # actions in memory, some megabytes; also the size of a block on disk
ENOUGH = 64  # actions after which the consumer is woken

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Spool:
    """A first-in, first-out queue from one thread to another."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close
        self._blocks: deque[int] = deque()  # bytes of each block that was written and not read yet
        self._changed = threading.Condition()
        self._fresh: list[Action] = []
        self._complete = False
        self.count = 0

    def put(self, action: Action) -> None:
        """Append an action."""
        with self._changed:
            self._fresh.append(action)
            self.count += 1
            if len(self._fresh) >= HELD:
                self._write()
            if self.count % ENOUGH == 0:
                self._changed.notify()

    def complete(self) -> None:
        """Mark the end of the queue."""
        with self._changed:
            self._complete = True
            self._changed.notify()

    def take(self, patience: float) -> Iterator[Action | None]:
        """All actions in order; None after each *patience* seconds without one."""
        position = 0
        while True:
            size = 0
            with self._changed:
                if not self._blocks and not self._fresh and not self._complete:
                    self._changed.wait(patience)
                taken: list[Action] = []
                if self._blocks:
                    size = self._blocks.popleft()
                elif self._fresh:
                    taken, self._fresh = self._fresh, taken
                elif self._complete:
                    return
            if size:
                taken = [_unpack(row) for row in json.loads(os.pread(self._file.fileno(), size, position))]
                position += size
            if taken:
                yield from taken
            else:
                yield None

    def close(self) -> None:
        """Free the disk space. `put` fails from then on."""
        # Under the lock: after a close during a write, the descriptor's number may belong to another file.
        with self._changed:
            self._file.close()

    def _write(self) -> None:
        block = json.dumps([_pack(action) for action in self._fresh]).encode()
        view = memoryview(block)
        while view:
            view = view[self._file.write(view) :]
        self._blocks.append(len(block))
        self._fresh.clear()


def _pack(action: Action) -> list[Any]:
    return [
        action.identifier,
        action.kind,
        action.reason,
        _pack_info(action.source),
        _pack_info(action.target),
        action.looked,
    ]


def _unpack(row: list[Any]) -> Action:
    return Action(row[0], row[1], row[2], _unpack_info(row[0], row[3]), _unpack_info(row[0], row[4]), row[5])


def _pack_info(info: ObjectInfo | None) -> list[Any] | None:
    if info is None:
        return None
    return [
        info.size,
        None if info.modified is None else microseconds(info.modified),
        info.etag,
        info.sha256,
        info.content_type,
    ]


def _unpack_info(identifier: str, row: list[Any] | None) -> ObjectInfo | None:
    if row is None:
        return None
    modified = None if row[1] is None else _EPOCH + timedelta(microseconds=row[1])
    return ObjectInfo(identifier, row[0], modified, row[2], row[3], row[4])
