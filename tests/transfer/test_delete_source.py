"""What a migration deletes from its source is on the target, as it was verified, at that very moment."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from storage_backend import (
    AccessDeniedError,
    Capability,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    ObjectInfo,
    RemoteStorage,
    S3Storage,
    StorageBackend,
    migrate,
)
from storage_backend.backends.remote import SSHConfig
from storage_backend.wrappers.base import Wrapper
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.seven import Careless
from tests.transfer.samples import OLD, contents, memory, put

OBJECTS = {f"{number:02}": b"%02d" % number for number in range(20)} | {"overwritten": b"1", "removed": b"2"}


class Somebody(Wrapper):
    """Changes the target between verification and deletion, when it is made to survive power loss."""

    def __init__(self, backend: StorageBackend, modified: datetime | None) -> None:
        super().__init__(backend)
        self.modified = modified
        self.came = False

    @property
    def capabilities(self) -> Capability:
        return super().capabilities | Capability.FLUSH

    def flush(self) -> bool:
        if not self.came:
            self.came = True
            info = ObjectInfo("overwritten", 1, self.modified)
            self.backend.write_stream("overwritten", io.BytesIO(b"?"), info=info)
            self.backend.delete("removed")
        return True


@pytest.fixture(params=["memory", "local", "sqlite", "s3", "ssh", "seven"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageBackend]:
    with ExitStack() as stack:
        match request.param:
            case "memory":
                yield MemoryStorage()
            case "local":
                yield LocalStorage(tmp_path / "target")
            case "sqlite":
                yield stack.enter_context(DatabaseStorage(f"sqlite:///{tmp_path}/target.db"))
            case "ssh":
                place = request.getfixturevalue("openssh_place")
                yield stack.enter_context(RemoteStorage(cast(SSHConfig, place.config()), place.base))
            case "seven":
                yield Careless()
            case "s3":
                server = stack.enter_context(S3Server())
                server.create_bucket("bucket")
                yield stack.enter_context(
                    S3Storage(
                        "bucket",
                        endpoint_url=server.url,
                        region="us-east-1",
                        access_key=ACCESS_KEY,
                        secret_key=SECRET_KEY,
                    )
                )


@pytest.mark.parametrize("when", ["later", "within the clock's tick"])
def test_what_somebody_changed_on_the_target_since_is_kept_and_copied_again(
    when: str, target: StorageBackend, tmp_path: Path
) -> None:
    fresh = datetime.now(UTC).replace(microsecond=0)
    source = memory(OBJECTS, OLD if when == "later" else fresh)
    somebody = Somebody(target, None if when == "later" else fresh)
    journal, manifest = tmp_path / "journal", tmp_path / "manifest"
    report = migrate(source, somebody, journal=journal, manifest=manifest, delete_source=True)
    assert somebody.came
    assert contents(source) == {"overwritten": b"1", "removed": b"2"}
    assert set(report.failed) == {"overwritten", "removed"}
    assert "changed on the target" in str(report.failed["overwritten"])
    assert "no longer on the target" in str(report.failed["removed"])
    assert report.source_deleted == len(OBJECTS) - 2
    listed = {json.loads(line)["identifier"] for line in manifest.read_text().splitlines()}
    assert listed == OBJECTS.keys() - {"overwritten", "removed"}
    again = migrate(source, somebody, journal=journal, delete_source=True)
    assert again.ok
    assert (again.copied, again.source_deleted) == (2, 2)
    assert contents(target) == OBJECTS
    assert source.list() == []


def test_a_target_that_does_not_answer_for_an_object_keeps_its_source(tmp_path: Path) -> None:
    class Denying(MemoryStorage):
        denied = False

        def stat(self, identifier: str) -> ObjectInfo:
            if self.denied and identifier == "07":
                raise AccessDeniedError("not this one")
            return super().stat(identifier)

        @property
        def capabilities(self) -> Capability:
            return super().capabilities | Capability.FLUSH

        def flush(self) -> bool:
            self.denied = True
            return True

    source, target = memory(OBJECTS), Denying()
    report = migrate(source, target, journal=tmp_path / "journal", delete_source=True)
    assert contents(source) == {"07": OBJECTS["07"]}
    assert "not this one" in str(report.failed["07"])
    target.denied = False
    put(target, "extra", b"")
    assert migrate(source, target, journal=tmp_path / "journal", delete_source=True, flush=False).ok
    assert source.list() == []
