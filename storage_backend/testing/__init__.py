"""For authors of backends: the conformance suite and FaultyStorage. Needs pytest and no other library.

Read in this order:

* `conformance`: ConformanceSuite, the class to derive a test class from. It inherits from all topics.
* `subject`: Subject, which describes the backend under test and what it lacks; Topic, the base of all topics; helpers.
* `topics/`: the tests, one module for each part of the contract. `reading` and `writing` are the simplest; `replacing` and
  `processes` race threads and processes; `identifiers` has the tables of names.
* `faults`: FaultyStorage, a wrapper that fails, delays and truncates calls on purpose; `cuts`: its truncated streams.
"""

# ruff: noqa: E402 - rewriting must be asked for before the modules with the assertions are imported
import pytest

pytest.register_assert_rewrite("storage_backend.testing.subject", "storage_backend.testing.topics")

from storage_backend.testing.conformance import ConformanceSuite
from storage_backend.testing.faults import Call, FaultyStorage
from storage_backend.testing.subject import FEATURES, Source, SourceBrokeError, Subject, Topic
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

__all__ = [
    "FEATURES",
    "AwkwardIdentifiers",
    "Batches",
    "Call",
    "Capabilities",
    "Closing",
    "Conditions",
    "ConformanceSuite",
    "Copying",
    "Deleting",
    "Directories",
    "ErrorClasses",
    "FaultyStorage",
    "Files",
    "InvalidIdentifiers",
    "Listing",
    "Moving",
    "Pickling",
    "Processes",
    "Ranges",
    "Reading",
    "Replacing",
    "Scanning",
    "Source",
    "SourceBrokeError",
    "Streams",
    "Subject",
    "Threads",
    "Topic",
    "Verifying",
    "Writers",
    "Writing",
]
