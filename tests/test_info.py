from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import UTC, datetime

import pytest

from storage_backend import Capability, ObjectInfo, StorageBackend

pytestmark = pytest.mark.quick


def test_only_the_identifier_is_needed() -> None:
    info = ObjectInfo("a")
    assert dataclasses.astuple(info) == ("a", None, None, None, None, None)


def test_fields_are_those_of_the_contract_in_this_order() -> None:
    names = [field.name for field in dataclasses.fields(ObjectInfo)]
    assert names == ["identifier", "size", "modified", "etag", "sha256", "content_type"]


def test_it_is_frozen_and_slotted() -> None:
    info = ObjectInfo("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.size = 3  # type: ignore[misc] # on purpose
    assert not hasattr(info, "__dict__")
    with pytest.raises((AttributeError, TypeError)):
        info.other = 3  # type: ignore[attr-defined] # on purpose


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_it_pickles_copies_and_compares(protocol: int) -> None:
    info = ObjectInfo("a", 3, datetime(2020, 1, 2, tzinfo=UTC), "tag", "00ff", "text/csv")
    assert pickle.loads(pickle.dumps(info, protocol)) == info
    assert copy.deepcopy(info) == info
    assert hash(copy.copy(info)) == hash(info)
    assert dataclasses.replace(info, size=4) != info


def test_capabilities_are_those_of_the_contract() -> None:
    names = ["CREATE", "REPLACE", "URL", "RANGES", "SERVER_COPY", "CHECKSUM", "DIRECTORIES", "FLUSH"]
    assert [capability.name for capability in Capability] == names
    assert len(Capability) <= 8
    assert not Capability(0)
    assert pickle.loads(pickle.dumps(Capability.URL | Capability.FLUSH)) == Capability.URL | Capability.FLUSH


def test_abstract_methods_are_the_seven_for_ever() -> None:
    seven = {"exists", "read", "write", "delete", "list", "get_path", "size"}
    assert StorageBackend.__abstractmethods__ == seven
