"""Which host keys are accepted: known, unknown, changed, revoked, pinned, of this machine; and what is written about new ones."""

from __future__ import annotations

import base64
import hmac
import logging
import multiprocessing
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import paramiko
import pytest

from storage_backend import AuthenticationError, ConfigurationError
from storage_backend.backends.remote.hostkeys import (
    HostKeyPolicy,
    entry_name,
    fingerprint,
    is_loopback,
    remember,
)
from storage_backend.backends.remote.settings import Endpoint, read_settings
from tests.servers import program
from tests.ssh_servers import make_key

AWAY = "192.0.2.7"  # TEST-NET-1, RFC 5737
ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("keys")
    return {
        name: paramiko.PKey.from_path(make_key(place, kind))
        for name, kind in {"ours": "ed25519", "other": "ed25519", "rsa": "rsa", "ecdsa": "ecdsa"}.items()
    }


def line(names: str, key: Any, marker: str = "") -> str:
    return f"{marker} {names} {key.get_name()} {key.get_base64()}\n".lstrip()


def hashed(name: str) -> str:
    salt = os.urandom(20)
    parts = (salt, hmac.digest(salt, name.encode(), "sha1"))
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in parts)


class Place:
    """A known_hosts file and what is asked about it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def policy(
        self,
        *,
        text: str | None = None,
        port: int = 22,
        peer: str | None = AWAY,
        host: str = "nas",
        **changes: Any,
    ) -> HostKeyPolicy:
        if text is not None:
            self.path.write_text(text, encoding="utf-8")
        config = {"user": "ann", "endpoints": [[host, port]], "known_hosts": self.path, **changes}
        return HostKeyPolicy(read_settings(config), Endpoint(host, port, host, "ann"), peer=lambda: peer)

    def accepts(self, key: Any, **how: Any) -> bool:
        try:
            self.policy(**how).missing_host_key(None, "", key)
        except AuthenticationError:
            return False
        return True

    def refusal(self, key: Any, **how: Any) -> str:
        with pytest.raises(AuthenticationError) as raised:
            self.policy(**how).missing_host_key(None, "", key)
        return str(pickle.loads(pickle.dumps(raised.value)))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "known_hosts")


def test_fingerprint_is_what_ssh_keygen_shows(tmp_path: Path, keys: dict[str, Any]) -> None:
    (tmp_path / "k.pub").write_text(f"{keys['ours'].get_name()} {keys['ours'].get_base64()}\n")
    shown = subprocess.run(
        [program("ssh-keygen", "apt-get install openssh-client"), "-lf", tmp_path / "k.pub"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown.split()[1] == fingerprint(keys["ours"].asbytes())


@pytest.mark.parametrize("names", ["nas", "NAS", "10.0.0.1,nas", "n?s", "*", "*,!other", "HASHED"])
def test_known_key_is_accepted(place: Place, keys: dict[str, Any], names: str) -> None:
    text = line(hashed("nas") if names == "HASHED" else names, keys["ours"])
    assert place.accepts(keys["ours"], text=text)
    assert not place.accepts(keys["other"], text=text)


@pytest.mark.parametrize(
    "names", ["other", "nas.example.org", "*,!nas", "!nas", "[nas]:2222", "na", "n[a]s", "|1|x|y", "|1|"]
)
def test_entry_of_another_host_does_not_count(place: Place, keys: dict[str, Any], names: str) -> None:
    assert "known_hosts" in place.refusal(keys["ours"], text=line(names, keys["ours"]))


def test_other_port_has_an_entry_of_its_own(place: Place, keys: dict[str, Any]) -> None:
    text = line("[nas]:2222", keys["ours"]) + line(hashed("[nas]:2223"), keys["other"])
    assert place.accepts(keys["ours"], text=text, port=2222)
    assert place.accepts(keys["other"], text=text, port=2223)
    assert not place.accepts(keys["other"], text=text, port=2222)
    assert not place.accepts(keys["ours"], text=text, port=22)


def test_entry_without_port_vouches_for_other_ports(place: Place, keys: dict[str, Any]) -> None:
    text = line("nas", keys["ours"])
    assert place.accepts(keys["ours"], text=text, port=2222)
    assert "mismatch" not in place.refusal(keys["other"], text=text, port=2222)
    text += line("[nas]:2222", keys["other"])
    assert "mismatch" in place.refusal(keys["ours"], text=text, port=2222)


def test_files_that_ssh_keygen_hashed_are_understood(place: Place, keys: dict[str, Any]) -> None:
    place.path.write_text(line("nas", keys["ours"]) + line("[nas]:2222", keys["rsa"]))
    subprocess.run(
        [program("ssh-keygen", "apt-get install openssh-client"), "-H", "-f", place.path],
        check=True,
        capture_output=True,
    )
    assert "nas" not in place.path.read_text()
    assert place.accepts(keys["ours"])
    assert place.accepts(keys["rsa"], port=2222)
    assert not place.accepts(keys["rsa"])


def test_one_of_several_keys_is_enough(place: Place, keys: dict[str, Any]) -> None:
    text = "".join(line("nas", keys[name]) for name in ("rsa", "other", "ours"))
    assert place.accepts(keys["ours"], text=text)
    assert place.accepts(keys["rsa"], text=text)
    assert not place.accepts(keys["ecdsa"], text=text)


def test_known_kinds_are_asked_for_first(place: Place, keys: dict[str, Any]) -> None:
    assert place.policy(text="").order(ALGORITHMS) == ALGORITHMS
    known = place.policy(text=line("nas", keys["rsa"]))
    assert known.order(ALGORITHMS) == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256")
    odd = place.policy(text="nas ssh-dss AAAA\nnas sk-ssh-ed25519@openssh.com AAAA\n")
    assert odd.order(ALGORITHMS) == ALGORITHMS


def test_known_key_of_a_kind_that_cannot_be_used_is_a_mismatch(place: Place, keys: dict[str, Any]) -> None:
    assert "mismatch" in place.refusal(keys["ours"], text="nas ssh-dss AAAA\n", host_key_policy="accept-new")


def test_unknown_key_is_refused_with_what_to_set(place: Place, keys: dict[str, Any]) -> None:
    words = place.refusal(keys["ours"], text="")
    assert f'set host_key_policy="{keys["ours"].fingerprint}"' in words
    assert str(place.path) in words
    assert "ssh_host_ed25519_key.pub" in words


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
@pytest.mark.parametrize("peer", [AWAY, "127.0.0.1"])
@pytest.mark.parametrize("known", ["other", "rsa"])
def test_changed_key_is_refused_with_both_fingerprints(
    place: Place, keys: dict[str, Any], policy: str, peer: str, known: str
) -> None:
    text = "# a comment\n" + line("nas", keys[known])
    words = place.refusal(keys["ours"], text=text, host_key_policy=policy, peer=peer)
    assert "host key mismatch" in words
    assert keys["ours"].fingerprint in words
    assert keys[known].fingerprint in words
    assert f"{place.path}:2" in words
    assert place.path.read_text() == text


@pytest.mark.parametrize("policy", ["strict", "accept-new"])
def test_revoked_key_is_refused(place: Place, keys: dict[str, Any], policy: str) -> None:
    text = line("nas", keys["ours"]) + line("*", keys["ours"], "@revoked")
    for port in (22, 2222):
        words = place.refusal(keys["ours"], text=text, host_key_policy=policy, peer="127.0.0.1", port=port)
        assert "revoked" in words
    assert place.accepts(
        keys["ours"], text=line("other", keys["ours"], "@revoked") + line("nas", keys["ours"])
    )


def test_authority_is_no_host_key(place: Place, keys: dict[str, Any]) -> None:
    text = line("*", keys["ours"], "@cert-authority") + line("nas", keys["ours"], "@other")
    words = place.refusal(keys["ours"], text=text)
    assert "mismatch" not in words
    assert f"@cert-authority ({place.path}:1), which is not used" in words
    assert place.accepts(keys["other"], text=text + line("nas", keys["other"]))


def test_broken_lines_are_skipped(place: Place, keys: dict[str, Any]) -> None:
    text = f"nas\nnas ssh-rsa\nnas ssh-rsa ===\n\xff\n@revoked\n\n  \t\n#nas x y\n{line('nas', keys['ours'])}"
    place.path.write_bytes(text.encode("latin-1"))
    assert place.accepts(keys["ours"])


def test_missing_files_say_nothing_and_unreadable_ones_are_an_error(place: Place, tmp_path: Path) -> None:
    assert place.policy(known_hosts=[tmp_path / "none", place.path / "below"]).name == "nas"
    with pytest.raises(ConfigurationError, match="known_hosts"):
        place.policy(known_hosts=tmp_path)


def test_home_directory_is_meant_by_a_tilde(
    place: Place, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place.accepts(keys["ours"], text=line("nas", keys["ours"]), known_hosts="~/known_hosts")


# accept-new


def test_new_key_is_accepted_and_known_from_then_on(
    place: Place, keys: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "new/.ssh/known_hosts"
    how: dict[str, Any] = {"known_hosts": [path, place.path], "port": 2222}
    assert place.accepts(keys["ours"], host_key_policy="accept-new", **how)
    assert path.read_text() == line("[nas]:2222", keys["ours"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not place.path.exists()
    assert place.accepts(keys["ours"], **how)
    assert not place.accepts(keys["other"], host_key_policy="accept-new", **how)
    assert path.read_text() == line("[nas]:2222", keys["ours"])


def test_new_line_is_not_glued_to_the_last(place: Place, keys: dict[str, Any]) -> None:
    text = line("other", keys["other"]).rstrip("\n")
    assert place.accepts(keys["ours"], text=text, host_key_policy="accept-new")
    assert place.path.read_text() == text + "\n" + line("nas", keys["ours"])


def test_key_that_another_process_wrote_meanwhile_is_looked_at(place: Place, keys: dict[str, Any]) -> None:
    policy = place.policy(text="", host_key_policy="accept-new")
    place.path.write_text(line("nas", keys["other"]))
    with pytest.raises(AuthenticationError, match="mismatch"):
        policy.missing_host_key(None, "", keys["ours"])
    same = place.policy(text="", host_key_policy="accept-new")
    place.path.write_text(line("nas", keys["ours"]))
    same.missing_host_key(None, "", keys["ours"])
    assert place.path.read_text() == line("nas", keys["ours"])


def test_key_that_cannot_be_remembered_is_refused(place: Place, keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = place.refusal(
        keys["ours"], known_hosts=tmp_path / "file/known_hosts", host_key_policy="accept-new"
    )
    assert "cannot be written" in words


def test_processes_that_add_at_a_time_lose_no_line(tmp_path: Path) -> None:
    path = str(tmp_path / "known_hosts")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add, args=(path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    lines = (tmp_path / "known_hosts").read_text().splitlines()
    assert sorted(lines) == sorted(
        {f"host{n} ssh-x {base64.b64encode(b'%d' % n).decode()}" for n in range(60)}
    )


def _add(path: str, worker: int) -> None:
    for n in range(60):  # each of them all, from a place of its own
        at = (n + 20 * worker) % 60
        assert remember(path, f"host{at}", "ssh-x", b"%d" % at) == []


# Pins


@pytest.mark.parametrize("peer", [AWAY, "127.0.0.1"])
def test_pinned_key_is_the_only_one(place: Place, keys: dict[str, Any], peer: str) -> None:
    pin = keys["ours"].fingerprint
    text = line("nas", keys["other"]) + line("nas", keys["ours"], "@revoked")
    assert place.accepts(keys["ours"], text=text, host_key_policy=pin, peer=peer)
    words = place.refusal(keys["other"], host_key_policy=pin, peer=peer)
    assert pin in words
    assert keys["other"].fingerprint in words


def test_there_may_be_several_pins(place: Place, keys: dict[str, Any]) -> None:
    pins = [keys[name].fingerprint for name in ("ours", "rsa")]
    assert [place.accepts(key, text="", host_key_policy=pins) for key in keys.values()] == [
        True,
        False,
        True,
        False,
    ]


def test_kinds_to_leave_out_are_not_asked_for(place: Place, keys: dict[str, Any]) -> None:
    settings = place.policy(text="", host_key_policy=keys["ours"].fingerprint)._settings
    policy = HostKeyPolicy(
        settings, Endpoint("nas", 22, "nas", "ann"), peer=lambda: None, without=["ssh-rsa", "ssh-ed25519"]
    )
    assert policy.order(ALGORITHMS) == ("ecdsa-sha2-nistp256",)


# This machine


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"])
def test_unknown_key_of_this_machine_is_accepted_with_a_warning(
    place: Place, keys: dict[str, Any], peer: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert place.accepts(keys["ours"], text="", peer=peer)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert keys["ours"].fingerprint in record.getMessage()
    assert place.path.read_text() == ""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.parametrize("peer", [AWAY, None, "unknown", "::ffff:192.0.2.7", "fe80::1%lo"])
def test_name_of_this_machine_is_not_enough(
    place: Place, keys: dict[str, Any], host: str, peer: str | None
) -> None:
    assert not place.accepts(keys["ours"], text="", peer=peer, host=host)


def test_loopback_addresses_are_told() -> None:
    assert is_loopback("127.255.0.1")
    assert not is_loopback("128.0.0.1")
    assert not is_loopback("localhost")


def test_names_are_those_of_openssh(tmp_path: Path, keys: dict[str, Any]) -> None:
    """`ssh-keygen -F` finds what is written."""
    path = tmp_path / "known_hosts"
    for host, port in (("NAS", 22), ("nas", 2222), ("::1", 22), ("::1", 2222)):
        remember(str(path), entry_name(host, port), "ssh-ed25519", keys["ours"].asbytes())
    for name in ("nas", "[nas]:2222", "::1", "[::1]:2222"):
        found = subprocess.run(
            [program("ssh-keygen", "apt-get install openssh-client"), "-F", name, "-f", path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert keys["ours"].get_base64() in found.stdout, (name, sys.platform)


def configured_policy(tmp_path: Path, text: str, peer: str | None = AWAY) -> HostKeyPolicy:
    """The policy for "nas", of which an OpenSSH configuration says *text*."""
    (tmp_path / "config").write_text(f"Host nas\n{text}\n")
    settings = read_settings(
        {"user": "ann", "endpoints": [["nas", 2222]], "ssh_config_file": tmp_path / "config"}
    )
    return HostKeyPolicy(settings, settings.endpoints[0], peer=lambda: peer)


def test_new_key_goes_where_the_configuration_says(tmp_path: Path, keys: dict[str, Any]) -> None:
    text = f"StrictHostKeyChecking accept-new\nUserKnownHostsFile {tmp_path}/%n {tmp_path}/second"
    configured_policy(tmp_path, text).missing_host_key(None, "", keys["ours"])
    assert (tmp_path / "nas").read_text() == line("[nas]:2222", keys["ours"])
    with pytest.raises(AuthenticationError, match="mismatch"):
        configured_policy(tmp_path, text.replace("accept-new", "no")).missing_host_key(
            None, "", keys["other"]
        )
    with pytest.raises(AuthenticationError, match="names no file to add"):
        configured_policy(
            tmp_path, "StrictHostKeyChecking no\nUserKnownHostsFile none\nGlobalKnownHostsFile none"
        ).missing_host_key(None, "", keys["ours"])
    # As for machines that come and go.
    text = "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nGlobalKnownHostsFile none"
    configured_policy(tmp_path, text).missing_host_key(None, "", keys["ours"])


def test_alias_is_what_known_hosts_calls_the_host(tmp_path: Path, keys: dict[str, Any]) -> None:
    text = f"HostKeyAlias NAS-1\nGlobalKnownHostsFile none\nUserKnownHostsFile {tmp_path}/known"
    (tmp_path / "known").write_text(line("nas-1", keys["ours"]))
    configured_policy(tmp_path, text).missing_host_key(None, "", keys["ours"])
    (tmp_path / "known").write_text(line("nas,[nas]:2222,[nas-1]:2222", keys["ours"]))
    with pytest.raises(AuthenticationError, match="nas-1 is in none of"):
        # Not even of this machine, which is then only the way to another.
        configured_policy(tmp_path, text, "127.0.0.1").missing_host_key(None, "", keys["ours"])
