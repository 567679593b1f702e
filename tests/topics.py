"""What a backend does to objects: the topics of the conformance suite for the second and third class of a kind.

The others hold where a kind begins, and the full suite runs once a kind: refused identifiers, pickles, threads, children,
closing, errors, local files.
"""

from __future__ import annotations

from storage_backend.testing import (
    AwkwardIdentifiers,
    Batches,
    Conditions,
    Copying,
    Deleting,
    Directories,
    Listing,
    Moving,
    Ranges,
    Reading,
    Scanning,
    Streams,
    Verifying,
    Writers,
    Writing,
)


class ObjectTopics(
    Reading,
    Writing,
    Verifying,
    Conditions,
    Deleting,
    Copying,
    Moving,
    Listing,
    Scanning,
    Ranges,
    Streams,
    Writers,
    AwkwardIdentifiers,
    Batches,
    Directories,
):
    """Objects, and nothing else."""
