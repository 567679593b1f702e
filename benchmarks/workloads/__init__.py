"""The workloads, one module for each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from benchmarks.harness import Workload

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Local files": (
        "local-read",
        "local-exists",
        "local-size",
        "local-write",
        "local-overwrite",
        "local-list",
        "local-list-stat",
        "local-copy",
    ),
    "Cache": (
        "cache-hit-1k",
        "cache-hit-100k",
        "cache-hit-10m",
        "cache-handle",
        "cache-fill",
        "cache-misses",
        "cache-mixed",
        "cache-mixed-third",
        "cache-zipf",
        "cache-entries",
    ),
    "S3": (
        "s3-get",
        "s3-get-nginx",
        "s3-head",
        "s3-head-nginx",
        "s3-put",
        "s3-read-many",
        "s3-write-many",
        "s3-download",
        "s3-download-nginx",
        "s3-upload",
        "s3-list",
        "s3-delete-many",
    ),
    "SSH": (
        "ssh-download",
        "ssh-upload",
        "ssh-download-rtt",
        "ssh-upload-rtt",
        "ssh-read-many",
        "ssh-write-many",
        "ssh-read-many-rtt",
        "ssh-write-many-rtt",
        "ssh-read-many-sftp",
        "ssh-write-many-sftp",
        "ssh-stat",
        "ssh-read",
        "ssh-write",
        "ssh-list",
        "ssh-dial",
    ),
    "Migration": (
        "nothing-to-do",
        "local-to-sqlite",
        "local-to-s3",
        "local-to-ssh",
    ),
}
"""The names of all workloads, by the heading under which the results have them."""

NAMES = tuple(name for names in GROUPS.values() for name in names)


def load(name: str) -> Workload:
    """The workload of that name."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    workload: Workload = module.WORKLOAD
    return workload
