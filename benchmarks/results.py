"""The measurements that are kept: a JSON file a workload, from which the page is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

Measurement: TypeAlias = dict[str, Any]
"""What `rounds.run` gives: JSON values only."""

MEMORY = "tmpfs"  # the file system of /dev/shm, tmpfs(5)


class Results:
    """The measurements beneath a folder.

    What was measured on a disk is in `disk/`, beside what was measured in memory: neither replaces the other.
    `calls.json` has the tables of `benchmarks.calls`, in the order in which they were made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls.json"

    def keep(self, measurement: Measurement) -> None:
        """Write a measurement in the place of the older one of its workload."""
        disk = measurement["machine"]["files"] != MEMORY
        path = self._folder / ("disk" if disk else "") / f"{measurement['workload']}.json"
        # A line a key: then a difference of two versions can be read.
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
        """By workload, what was measured in memory."""
        return _measurements(self._folder)

    def on_disk(self) -> dict[str, Measurement]:
        """By workload, what was measured on a disk."""
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
