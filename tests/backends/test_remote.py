"""RemoteStorage: the conformance suite over five SSH servers, with and without a shell, through a prefix, and a substitute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from storage_backend.backends.remote import RemoteStorage
from storage_backend.testing import ConformanceSuite, Subject
from storage_backend.wrappers.prefixed import PrefixedStorage

if TYPE_CHECKING:
    from storage_backend.backends.remote import SSHConfig
    from tests.ssh_servers import SSHPlace

LACKS = {"content_type": "a file has no media type"}
RCLONE: dict[str, str] = {}
BARE: dict[str, str] = {}


def storage_at(place: SSHPlace, **more: Any) -> RemoteStorage:
    return RemoteStorage(cast("SSHConfig", place.config(**more)), place.base)


class TestOpenSSH(ConformanceSuite):
    @pytest.fixture
    def subject(self, openssh_place: SSHPlace) -> Subject:
        return Subject(make=lambda: storage_at(openssh_place), lacks=LACKS)


class TestOpenSSHWithoutShell(ConformanceSuite):
    @pytest.fixture
    def subject(self, openssh_place: SSHPlace) -> Subject:
        return Subject(make=lambda: storage_at(openssh_place, shell="never"), lacks=LACKS)


class TestInternalSFTP(ConformanceSuite):
    @pytest.fixture
    def subject(self, internal_sftp_place: SSHPlace) -> Subject:
        return Subject(make=lambda: storage_at(internal_sftp_place), lacks=LACKS)


class TestAsyncSSH(ConformanceSuite):
    @pytest.fixture
    def subject(self, asyncssh_place: SSHPlace) -> Subject:
        return Subject(make=lambda: storage_at(asyncssh_place), lacks=LACKS)


class TestRclone(ConformanceSuite):
    @pytest.fixture
    def subject(self, rclone_sftp_place: SSHPlace) -> Subject:
        return Subject(make=lambda: storage_at(rclone_sftp_place), lacks={**LACKS, **RCLONE})


class TestBare(ConformanceSuite):
    @pytest.fixture
    def subject(self, paramiko_sftp_place: SSHPlace) -> Subject:
        return Subject(
            make=lambda: storage_at(paramiko_sftp_place, non_atomic_overwrite=True), lacks={**LACKS, **BARE}
        )


class TestThroughPrefix(ConformanceSuite):
    @pytest.fixture
    def subject(self, openssh_place: SSHPlace) -> Subject:
        return Subject(make=lambda: PrefixedStorage(storage_at(openssh_place), "some/where"), lacks=LACKS)
