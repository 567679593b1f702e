"""Shared by the workloads of single operations on local files: a thousand files and their names."""

from __future__ import annotations

from pathlib import Path

from benchmarks import data
from benchmarks.harness import OURS, Comparison, Place, Scale

PLAIN = "open().read()"


def folder(place: Place) -> Path:
    """Where the files are."""
    return place.shared / f"small-{place.scale.objects}"


def setup(place: Place) -> None:
    """Make the files."""
    data.tree(folder(place), place.scale.objects)


def identifiers(place: Place) -> list[str]:
    """Their names beneath the folder."""
    return list(data.names(place.scale.objects))


def paths(place: Place) -> list[str]:
    """Their absolute paths, joined beforehand: whoever takes paths does not pay for joining them."""
    return [f"{folder(place)}/{name}" for name in identifiers(place)]


def operations(scale: Scale) -> int:
    """Each file once."""
    return scale.objects


def comparisons(fsspec: str, *others: str) -> tuple[Comparison, ...]:
    """The targets of "safe 4 KiB read; exists; size", and the others for information."""
    return (
        Comparison(OURS, PLAIN, 1.0),
        Comparison(OURS, fsspec, 2.0),
        *(Comparison(OURS, other) for other in others),
    )


def plain_read(path: str) -> bytes:
    """What most programs do."""
    with open(path, "rb") as file:
        return file.read()
