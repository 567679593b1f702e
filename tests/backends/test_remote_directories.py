"""The directories of a batch over SFTP come to be with the first object in each, whoever takes them away."""

from __future__ import annotations

import shutil
from collections import Counter
from typing import cast

import pytest

from storage_backend import BatchError, RemoteStorage
from storage_backend.backends.remote import packets
from storage_backend.backends.remote.packets import Request
from storage_backend.backends.remote.session import Session, Ticket
from storage_backend.backends.remote.settings import SSHConfig
from tests.ssh_servers import SSHPlace

ITEMS = [(f"{number // 50}/deep/{number % 5}/{number}", b"%d" % number) for number in range(100)]
DIRECTORIES = 2 + 2 + 10


def storage(place: SSHPlace, base: str) -> RemoteStorage:
    return RemoteStorage(cast(SSHConfig, place.config(shell="never")), base)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("base", ["", "/new/base"])
def test_batch_asks_for_each_new_directory_once(
    openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch, base: str, verify: bool
) -> None:
    asked: Counter[int] = Counter()
    add = Session._add

    def counting(session: Session, request: Request, ticket: Ticket | None) -> None:
        asked[request[0]] += 1
        add(session, request, ticket)

    with storage(openssh_place, openssh_place.base + base) as remote:
        if base:
            (openssh_place.local / "new").mkdir()
        monkeypatch.setattr(Session, "_add", counting)
        assert remote.write_many(ITEMS, verify=verify) == len(ITEMS)
        assert asked[packets.MKDIR] == DIRECTORIES + bool(base)
        assert dict(remote.read_many(name for name, _ in ITEMS)) == dict(ITEMS)


def test_directories_that_were_removed_are_made_again(openssh_place: SSHPlace) -> None:
    with storage(openssh_place, openssh_place.base) as remote:
        for _ in range(2):
            remote.write_many(ITEMS)
            assert sorted(remote.list()) == sorted(name for name, _ in ITEMS)
            shutil.rmtree(openssh_place.local / "0")
            shutil.rmtree(openssh_place.local / "1")


def test_file_in_place_of_a_directory_fails_its_objects_alone(openssh_place: SSHPlace) -> None:
    with storage(openssh_place, openssh_place.base) as remote:
        remote.write("1", b"a file")
        with pytest.raises(BatchError) as caught:
            remote.write_many(ITEMS)
        assert set(caught.value.failures) == {name for name, _ in ITEMS if name.startswith("1/")}
        assert remote.read("1") == b"a file"
        assert remote.read(ITEMS[0][0]) == ITEMS[0][1]
