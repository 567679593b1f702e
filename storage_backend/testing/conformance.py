"""ConformanceSuite: the contract of StorageBackend as tests."""

from __future__ import annotations

from storage_backend.testing.topics.batches import Batches
from storage_backend.testing.topics.capabilities import Capabilities
from storage_backend.testing.topics.closing import Closing
from storage_backend.testing.topics.copying import Copying, Moving
from storage_backend.testing.topics.deleting import Deleting
from storage_backend.testing.topics.errors import ErrorClasses
from storage_backend.testing.topics.files import Files
from storage_backend.testing.topics.identifiers import AwkwardIdentifiers, Directories, InvalidIdentifiers
from storage_backend.testing.topics.listing import Listing, Scanning
from storage_backend.testing.topics.processes import Pickling, Processes, Threads
from storage_backend.testing.topics.ranges import Ranges
from storage_backend.testing.topics.reading import Reading
from storage_backend.testing.topics.replacing import Conditions, Replacing
from storage_backend.testing.topics.streams import Streams, Writers
from storage_backend.testing.topics.writing import Verifying, Writing


class ConformanceSuite(
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
    InvalidIdentifiers,
    Directories,
    ErrorClasses,
    Threads,
    Pickling,
    Processes,
    Closing,
    Capabilities,
    Files,
):
    """Every topic.

    A backend's test file is a class with one fixture:

        class TestMyStorage(ConformanceSuite):
            @pytest.fixture
            def subject(self, tmp_path: Path) -> Subject:
                return Subject(make=lambda: MyStorage(tmp_path), lacks={"fork": "the server allows one session"})
    """
