"""Shared by the workloads of listing: the tree."""

from __future__ import annotations

from pathlib import Path

from benchmarks import data
from benchmarks.harness import Place


def folder(place: Place) -> Path:
    """Where the tree is."""
    return place.shared / f"tree-{place.scale.tree}"


def setup(place: Place) -> None:
    """Make the tree."""
    data.tree(folder(place), place.scale.tree)
