"""Stores the measurements, one JSON file for each workload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

Measurement: TypeAlias = dict[str, Any]
"""The result of `rounds.run`, in JSON values."""

MEMORY = "tmpfs"  # the file system of /dev/shm, tmpfs(5)


class Results:
    """The measurements in a folder.

    Measurements on a disk are in its subfolder `disk`; those in memory stay beside them. `calls.json` has the tables of
    `benchmarks.calls` in chronological order.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls.json"

    def keep(self, measurement: Measurement) -> None:
        """Store a measurement, instead of an older one of the same workload."""
        disk = measurement["machine"]["files"] != MEMORY
        path = self._folder / ("disk" if disk else "") / f"{measurement['workload']}.json"
        # One line for each key keeps diffs readable.
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in measurement.items())
        write("{{\n{}\n}}\n".format(",\n".join(lines)), path)

    def keep_calls(self, table: dict[str, Any]) -> None:
        """Add a table of `benchmarks.calls`."""
        tables = [*self.calls(), table]
        write("[\n{}\n]\n".format(",\n".join(map(json.dumps, tables))), self._calls)

    def calls(self) -> list[dict[str, Any]]:
        """All tables of `benchmarks.calls`, the oldest first."""
        tables: list[dict[str, Any]] = json.loads(self._calls.read_text()) if self._calls.exists() else []
        return tables

    def in_memory(self) -> dict[str, Measurement]:
        """The measurements in memory, by workload."""
        return _measurements(self._folder)

    def on_disk(self) -> dict[str, Measurement]:
        """The measurements on a disk, by workload."""
        return _measurements(self._folder / "disk")


def _measurements(folder: Path) -> dict[str, Measurement]:
    found = (json.loads(path.read_text()) for path in folder.glob("*.json"))
    return {one["workload"]: one for one in found if isinstance(one, dict)}


def write(text: str, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
