"""Moving what is a link: the object is where it was moved to, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage_backend import RemoteStorage
from tests.ssh_servers import SSHPlace

SERVERS = ["openssh_place", "internal_sftp_place", "asyncssh_place", "paramiko_sftp_place"]
CONTENT, OTHER = b"content", b"another"


@pytest.fixture(params=SERVERS)
def place(request: pytest.FixtureRequest) -> SSHPlace:
    place: SSHPlace = request.getfixturevalue(request.param)
    return place


@pytest.fixture
def backend(place: SSHPlace) -> Iterator[RemoteStorage]:
    config: Any = place.config()
    with RemoteStorage(config, place.base) as backend:
        yield backend


def all_names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("dest", ["b", "d/b"])
def test_move_onto_another_name_of_the_file_leaves_that_name_alone(
    backend: RemoteStorage, place: SSHPlace, dest: str
) -> None:
    (place.local / "d").mkdir()
    (place.local / "a").write_bytes(CONTENT)
    os.link(place.local / "a", place.local / dest)
    os.link(place.local / "a", place.local / "third")
    assert backend.move("a", dest) is True
    assert backend.list() == sorted([dest, "third"])
    assert backend.read(dest) == CONTENT
    assert backend.move("third", dest) is True
    backend.close()
    assert all_names(place.local) == [dest]


def test_move_onto_a_file_that_looks_the_same_replaces_it(backend: RemoteStorage, place: SSHPlace) -> None:
    for name, content in (("a", CONTENT), ("b", OTHER)):
        (place.local / name).write_bytes(content)
        os.utime(place.local / name, (1_600_000_000, 1_600_000_000))
    assert backend.move("a", "b") is True
    backend.close()
    assert all_names(place.local) == ["b"]
    assert (place.local / "b").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("target", "dest"),
    [
        ("file", "d/moved"),  # a relative link, to another directory
        ("file", "file"),  # onto what it leads to
        ("way", "file"),  # the same by another link
        ("file", "there"),  # onto another object
        ("file", "moved"),
        ("{}/file", "d/moved"),
    ],
)
def test_object_is_where_a_link_to_it_was_moved(
    backend: RemoteStorage, place: SSHPlace, target: str, dest: str
) -> None:
    (place.local / "file").write_bytes(CONTENT)
    (place.local / "there").write_bytes(OTHER)
    (place.local / "way").symlink_to("file")
    # In a root directory of its own the server sees links as clients do; paramiko's follows them on the disk.
    root = place.local if place.base.startswith("/test-") else place.base
    (place.local / "link").symlink_to(target.format(root))
    assert backend.move("link", dest) is True
    assert backend.read(dest) == CONTENT
    assert backend.read("file") == CONTENT
    backend.close()
    assert all_names(place.local) == sorted({"file", "there", "way", dest})


def test_link_that_leads_nowhere_is_renamed(backend: RemoteStorage, place: SSHPlace) -> None:
    (place.local / "link").symlink_to("nothing")
    assert backend.move("link", "d/moved") is True
    backend.close()
    assert all_names(place.local) == ["d/moved"]
