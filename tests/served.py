"""The topics of the conformance suite in which a server has a say, for second servers of a kind.

The others hold on our side of the connection: refused identifiers, pickles, children, closing, capabilities, local files. The
full suite runs over one server of each kind.
"""

from __future__ import annotations

from storage_backend.testing import (
    AwkwardIdentifiers,
    Batches,
    Conditions,
    Copying,
    Deleting,
    Directories,
    ErrorClasses,
    Listing,
    Moving,
    Ranges,
    Reading,
    Replacing,
    Scanning,
    Streams,
    Threads,
    Verifying,
    Writers,
    Writing,
)


class ServedTopics(
    Reading,
    Writing,
    Verifying,
    Replacing,
    Conditions,
    Deleting,
    Copying,
    Moving,
    Listing,
    Scanning,
    Batches,
    Ranges,
    Streams,
    Writers,
    AwkwardIdentifiers,
    Directories,
    ErrorClasses,
    Threads,
):
    """What a server answers."""
