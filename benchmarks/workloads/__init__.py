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
    "local-to-s3",
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
    "local-to-ssh",
)


def load(name: str) -> Workload:
    """The workload of that name."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    workload: Workload = module.WORKLOAD
    return workload
