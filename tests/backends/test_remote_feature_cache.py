"""What was found out of a server's shell is remembered for the further connections of a process, and doubted when it fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from storage_backend import RemoteStorage, StorageError
from storage_backend.backends.remote import connection
from storage_backend.backends.remote.probe import REMEMBERED, FeatureCache, ShellFeatures, probe
from tests.tiers import few

if TYPE_CHECKING:
    from tests.ssh_servers import SSHPlace

PROBE = "storage_backend.backends.remote.shell.probe"
FEATURES = ShellFeatures(find=True, whole=True)


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[ShellFeatures]:
    """The probes of a process that knows nothing yet."""
    probed: list[ShellFeatures] = []

    def counted(*arguments: Any) -> ShellFeatures:
        probed.append(probe(*arguments))
        return probed[-1]

    cache = FeatureCache()
    monkeypatch.setattr(connection, "feature_cache", lambda: cache)
    monkeypatch.setattr(PROBE, counted)
    return probed


@pytest.fixture
def wrapper(tmp_path: Path) -> Path:
    from tests.ssh_servers import shell_script

    return shell_script(tmp_path, "bash")


@pytest.fixture
def place(wrapper: Path) -> Iterator[SSHPlace]:
    """At a server whose shell is what the wrapper says."""
    from tests.ssh_servers import OpenSSH

    server = OpenSSH(command_wrapper=wrapper)
    try:
        with server.place() as place:
            (place.local / "a").write_bytes(b"1")
            yield place
    finally:
        server.stop()


def replace(wrapper: Path, kind: str) -> None:
    """Make it a shell of another kind."""
    from tests.ssh_servers import shell_script

    shell_script(wrapper.parent, kind).replace(wrapper)


def brief(probed: list[ShellFeatures], opening: Any, directory: bytes | None) -> ShellFeatures:
    """A probe that gives up soon."""
    probed.append(probe(opening, directory, 0.5))
    return probed[-1]


def listed(place: SSHPlace, **more: Any) -> list[str]:
    config: Any = place.config(**more)
    with RemoteStorage(config, place.base) as storage:
        return storage.list()


class TestMemory:
    def test_whole_features_are_kept_for_a_while(self) -> None:
        now = [100.0]
        cache = FeatureCache(lambda: now[0])
        assert cache.get("server") is None
        cache.put("server", FEATURES)
        now[0] += REMEMBERED - 1
        assert cache.get("server") is FEATURES
        assert cache.get("another") is None
        now[0] += 1
        assert cache.get("server") is None

    def test_a_probe_that_was_cut_short_is_not_kept(self) -> None:
        cache = FeatureCache()
        cache.put("server", ShellFeatures(find=True))
        assert cache.get("server") is None

    def test_what_is_doubted_is_forgotten(self) -> None:
        cache = FeatureCache()
        cache.put("server", FEATURES)
        cache.forget("server")
        cache.forget("server")
        assert cache.get("server") is None


def test_only_the_first_connection_probes(probed: list[ShellFeatures], openssh_place: SSHPlace) -> None:
    for _ in range(3):
        config: Any = openssh_place.config()
        with RemoteStorage(config, openssh_place.base) as storage:
            assert "sha256" in storage.check_connection()
            assert storage.flush()
    assert [features.whole for features in probed] == [True]


@pytest.mark.soak
def test_another_key_may_lead_to_another_shell(probed: list[ShellFeatures], openssh_place: SSHPlace) -> None:
    key = openssh_place.key_filename
    for key_filename in (key, [key], [key, key], key):
        assert listed(openssh_place, key_filename=key_filename) == []
    assert len(probed) == 2


@pytest.mark.soak
def test_another_server_at_the_same_address_is_another(
    probed: list[ShellFeatures], place: SSHPlace, tmp_path: Path
) -> None:
    from tests.ssh_servers import OpenSSH

    (tmp_path / "data").mkdir()
    ports: list[int] = []
    for _ in range(2):
        server = OpenSSH(data=tmp_path / "data", port=ports[0] if ports else None)
        ports.append(server.port)
        try:
            with server.place() as there:
                assert listed(there) == []
        finally:
            server.stop()
    assert len(set(ports)) == 1
    assert len(probed) == 2


@pytest.mark.parametrize("kind", few(["busybox", "csh-like", "mute"], 1))
def test_a_shell_that_changed_is_found_out_and_costs_no_result(
    probed: list[ShellFeatures], place: SSHPlace, wrapper: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    assert listed(place) == ["a"]
    replace(wrapper, kind)
    config: Any = place.config()
    with RemoteStorage(config, place.base) as storage:
        assert storage.list() == ["a"]
        assert len(probed) == 1
        assert storage.list() == ["a"]
        assert len(probed) == 2
        assert not probed[-1].find_names
    replace(wrapper, "bash")
    with RemoteStorage(config, place.base) as storage:
        assert storage.list() == ["a"]
    # Busybox answers all that it is asked, so that is believed for a while; the others say nothing.
    assert len(probed) == (2 if kind == "busybox" else 3)


def test_a_server_that_is_too_busy_for_a_channel_is_not_doubted(
    probed: list[ShellFeatures], openssh_place: SSHPlace
) -> None:
    import paramiko

    assert listed(openssh_place) == []
    config: Any = openssh_place.config()
    with RemoteStorage(config, openssh_place.base) as storage:
        link = storage._failover.connection()
        assert link.features.whole
        with pytest.raises(StorageError), link.command():
            raise paramiko.ChannelException(1, "Administratively prohibited")
        assert link.features.whole
    assert len(probed) == 1


@pytest.mark.soak
@pytest.mark.parametrize("verb", few(["list", "write_many"], 1))
def test_a_shell_that_hangs_by_now_is_given_up_once(
    probed: list[ShellFeatures], place: SSHPlace, wrapper: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: Any = place.config(io_timeout=1.0)
    with RemoteStorage(config, place.base) as storage:
        assert storage.list() == ["a"]
    replace(wrapper, "hung")
    monkeypatch.setattr(PROBE, lambda opening, directory, _: brief(probed, opening, directory))
    with RemoteStorage(config, place.base) as storage:
        if verb == "write_many":
            assert storage.write_many((str(number), b"1") for number in range(64)) == 64
        assert "a" in storage.list()
        assert [features.find_names for features in probed] == [True, False]


@pytest.mark.soak
def test_a_probe_that_took_too_long_is_made_again(
    probed: list[ShellFeatures], place: SSHPlace, wrapper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PROBE, lambda opening, directory, _: brief(probed, opening, directory))
        replace(wrapper, "slow")
        assert listed(place) == ["a"]
    replace(wrapper, "bash")
    assert listed(place) == ["a"]
    assert [features.find_names for features in probed] == [False, True]
