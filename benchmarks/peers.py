"""Local file systems of the peers, set up as their documentation says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness import peer


def fsspec_local() -> Any:
    """The file system of fsspec over local files; it takes absolute paths."""
    return peer("fsspec.implementations.local").LocalFileSystem()


def obstore_local(root: Path) -> Any:
    """The store of obstore beneath *root*."""
    return peer("obstore.store").LocalStore(prefix=str(root))


def opendal_local(root: Path, **settings: str) -> Any:
    """The operator of opendal beneath *root*."""
    return peer("opendal").Operator("fs", root=str(root), **settings)
