"""The workloads, one module each."""

from __future__ import annotations

import importlib

from benchmarks.harness import Workload

NAMES = (
    "local-read",
    "local-exists",
    "local-size",
    "local-write",
    "local-overwrite",
    "local-list",
    "local-list-stat",
    "local-copy",
    "nothing-to-do",
    "local-to-sqlite",
)


def load(name: str) -> Workload:
    """The workload of that name."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    workload: Workload = module.WORKLOAD
    return workload
