"""What a write over SSH leaves there is known from its own answer, so that a transfer does not ask object by object."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from typing_extensions import override

from storage_backend import LocalStorage, ObjectInfo, RemoteStorage, sync
from storage_backend.backends.remote import storage as storage_module
from storage_backend.backends.remote.settings import SSHConfig
from tests.ssh_servers import SSHPlace

LONG_AGO = datetime(2020, 5, 17, 12, 30, tzinfo=UTC)


def storage(place: SSHPlace) -> RemoteStorage:
    return RemoteStorage(cast(SSHConfig, place.config()), place.base)


def test_last_written_of_each_way_to_write_is_what_stat_shows(
    openssh_place: SSHPlace, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (9 << 20))
    with storage(openssh_place) as remote:
        remote.write("small", b"content")
        remote.write_stream(
            "stream", io.BytesIO(b"y" * (1 << 20)), info=ObjectInfo("stream", 1 << 20, LONG_AGO)
        )
        remote.write_many([("d/one", b"1"), (ObjectInfo("d/two", 2, LONG_AGO), b"22")])
        remote.write_many([(ObjectInfo("d/three", 3, LONG_AGO), b"333")], verify=True)
        remote.upload(large, "large")
        with remote.open("opened", "wb") as file:
            file.write(b"z" * (1 << 20))
        for identifier in ("small", "stream", "d/one", "d/two", "d/three", "large", "opened"):
            assert remote.hooks.last_written(identifier) == remote.stat(identifier)
            assert remote.hooks.last_written(identifier) is None, "told twice"


def test_overwriting_replaces_what_was_last_written(openssh_place: SSHPlace) -> None:
    with storage(openssh_place) as remote:
        remote.write("name", b"first content")
        remote.write("name", b"second")
        assert remote.hooks.last_written("name") == remote.stat("name")


def test_records_that_nobody_asks_for_stay_few(
    openssh_place: SSHPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_module, "MOST_LAST_WRITTEN", 4)
    with storage(openssh_place) as remote:
        remote.write_many((str(number), b"content") for number in range(9))
        assert 1 <= len(remote._last_written) <= 4


class Counting(RemoteStorage):
    """Counts what is asked of single objects."""

    asked = 0

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        self.asked += 1
        return super().stat(identifier)


@pytest.mark.parametrize("verify", ["size", "digest"])
def test_sync_asks_about_no_object_that_it_wrote(
    openssh_place: SSHPlace, tmp_path: Path, verify: str
) -> None:
    source = LocalStorage(tmp_path)
    source.write_many((f"d/{number}", b"content") for number in range(40))
    source.write("large", b"x" * (9 << 20))
    with Counting(cast(SSHConfig, openssh_place.config()), openssh_place.base) as remote:
        report = sync(source, remote, verify=verify)
        report.raise_for_failures()
        assert report.copied == 41
        assert remote.asked == 0
