"""Spool: a queue of actions on disk, so that planning can run ahead without holding the plan in memory."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from storage_backend.info import ObjectInfo
from storage_backend.transfer.fingerprint import microseconds
from storage_backend.transfer.planning import Action

BLOCK = 256 << 10  # bytes read, and buffered before they are written, at a time

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Spool:
    """First in, first out, from one thread to another."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close
        self._changed = threading.Condition()
        self._fresh: list[bytes] = []
        self._fresh_size = 0
        self._complete = False
        self.count = 0

    def put(self, action: Action) -> None:
        """Append an action."""
        line = json.dumps(_pack(action)).encode() + b"\n"
        with self._changed:
            self._fresh.append(line)
            self._fresh_size += len(line)
            self.count += 1
            if self._fresh_size >= BLOCK:
                self._write()
            self._changed.notify()

    def complete(self) -> None:
        """Say that no more will come."""
        with self._changed:
            self._complete = True
            self._changed.notify()

    def take(self, patience: float) -> Iterator[Action | None]:
        """All actions in order; None each time that *patience* seconds passed without one."""
        position = 0
        rest = b""
        while True:
            with self._changed:
                if not self._fresh and not self._complete and position == self._written():
                    self._changed.wait(patience)
                self._write()
                end = self._written()
                if position == end:
                    if self._complete:
                        return
                    block = b""
                else:
                    block = os.pread(self._file.fileno(), min(BLOCK, end - position), position)
            if not block:
                yield None
                continue
            position += len(block)
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield _unpack(json.loads(line))

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()

    def _write(self) -> None:
        if self._fresh:
            view = memoryview(b"".join(self._fresh))
            while view:
                view = view[self._file.write(view) :]
            self._fresh.clear()
            self._fresh_size = 0

    def _written(self) -> int:
        return self._file.tell()


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
