"""What a RemoteStorage may be told: keys, types, limits, secrets, and the user's OpenSSH configuration."""

from __future__ import annotations

import copy
import getpass
import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from storage_backend import ConfigurationError, MissingClientError
from storage_backend.backends.remote.settings import Endpoint, SSHConfig, SSHSettings, read_settings

pytestmark = pytest.mark.quick

PIN = "SHA256:" + "A" * 43
LEAST: SSHConfig = {"user": "ann", "endpoints": [["nas", 22]]}


def read(**changes: object) -> SSHSettings:
    return read_settings({**LEAST, **changes})


def refused(config: object) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as raised:
        read_settings(config)
    assert isinstance(raised.value, ValueError)
    return raised.value


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return tmp_path


def configured(home: Path, text: str, **changes: object) -> SSHSettings:
    path = home / "ssh_config"
    path.write_text(text, encoding="utf-8")
    return read(ssh_config_file=path, **changes)


def test_user_and_endpoints_are_enough() -> None:
    found = read_settings({"user": "ann", "endpoints": [["nas", 22], ("10.0.0.5", "2222")]})
    assert found.endpoints == (
        Endpoint("nas", 22, "nas", "ann"),
        Endpoint("10.0.0.5", 2222, "10.0.0.5", "ann"),
    )
    assert found.user == "ann"
    assert (found.connection_timeout, found.io_timeout, found.keepalive) == (2.0, 30.0, 0.0)
    assert (found.host_key_policy, found.pins, found.shell) == ("strict", (), "auto")
    assert (found.agent, found.non_atomic_overwrite, found.max_connections) == (True, True, 1)
    assert found.known_hosts == (
        "~/.ssh/known_hosts",
        "~/.ssh/known_hosts2",
        "/etc/ssh/ssh_known_hosts",
        "/etc/ssh/ssh_known_hosts2",
    )


def test_endpoint_without_port_has_22() -> None:
    assert [e.port for e in read(endpoints=[["nas"], ["nas", None]]).endpoints] == [22, 22]


def test_ipv6_address_may_stand_in_brackets() -> None:
    first, second = read(endpoints=[["[::1]", 22], ["fe80::1%eth0", 22]]).endpoints
    assert first.hostname == "::1"
    assert str(first) == "[::1]:22"
    assert second.hostname == "fe80::1%eth0"


@pytest.mark.parametrize("config", [None, [], "ann@nas", 3, [("user", "ann")]])
def test_what_is_no_dictionary_is_refused(config: object) -> None:
    assert refused(config).parameter == "ssh_config"


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"user": None}, "user"),
        ({"user": ""}, "user"),
        ({"user": 7}, "user"),
        ({"user": "a\nb"}, "user"),
        ({"endpoints": None}, "endpoints"),
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": ()}, "endpoints"),
        ({"endpoints": "nas"}, "endpoints"),
        ({"endpoints": ["nas"]}, "endpoints"),
        ({"endpoints": {"nas": 22}}, "endpoints"),
        ({"endpoints": [["nas", 22, 1]]}, "endpoints"),
        ({"endpoints": [["", 22]]}, "endpoints"),
        ({"endpoints": [[b"nas", 22]]}, "endpoints"),
        ({"endpoints": [["-oProxyCommand=x", 22]]}, "endpoints"),
        ({"endpoints": [["a;b", 22]]}, "endpoints"),
        ({"endpoints": [["ann@nas", 22]]}, "endpoints"),
        *[
            ({"endpoints": [["nas", port]]}, "endpoints")
            for port in (0, -1, 65536, "x", "", "²", 22.0, True, b"22")
        ],
        *[
            ({"connection_timeout": value}, "connection_timeout")
            for value in (0, -1, "2", True, float("inf"), float("nan"))
        ],
        ({"io_timeout": 0}, "io_timeout"),
        ({"keepalive": -1}, "keepalive"),
        ({"key_filename": 3}, "key_filename"),
        ({"key_filename": [""]}, "key_filename"),
        ({"password": b"x"}, "password"),
        ({"passphrase": 5}, "passphrase"),
        ({"agent": "yes"}, "agent"),
        ({"agent": 1}, "agent"),
        ({"known_hosts": [None]}, "known_hosts"),
        ({"known_hosts": [], "host_key_policy": "accept-new"}, "known_hosts"),
        ({"host_key_policy": "yes"}, "host_key_policy"),
        ({"host_key_policy": []}, "host_key_policy"),
        ({"host_key_policy": ["strict"]}, "host_key_policy"),
        ({"host_key_policy": PIN[:-1]}, "host_key_policy"),
        ({"host_key_policy": "MD5:00:11"}, "host_key_policy"),
        ({"ssh_config_file": 3}, "ssh_config_file"),
        ({"ssh_config_file": ["a", "b"]}, "ssh_config_file"),
        ({"ssh_config_file": "/does/not/exist"}, "ssh_config_file"),
        ({"max_connections": 0}, "max_connections"),
        ({"max_connections": 1.5}, "max_connections"),
        ({"shell": "bash"}, "shell"),
        ({"shell": True}, "shell"),
        ({"non_atomic_overwrite": None}, "non_atomic_overwrite"),
    ],
)
def test_wrong_value_is_refused_by_name(changes: dict[str, object], parameter: str) -> None:
    error = refused({**LEAST, **changes})
    assert error.parameter == parameter
    assert str(error).startswith(f"{parameter}: ")


def test_missing_user_and_endpoints_are_refused() -> None:
    assert refused({"endpoints": [["nas", 22]]}).parameter == "user"
    assert refused({"user": "ann"}).parameter == "endpoints"
    assert refused({}).parameter == "endpoints"


def test_unknown_key_is_refused_with_the_known_ones() -> None:
    message = str(refused({**LEAST, "key_file_name": "x"}))
    assert "'key_file_name' (did you mean 'key_filename'?)" in message
    for key in SSHConfig.__annotations__:
        assert key in message
    assert "unknown key 3" in str(refused({"user": "ann", 3: "x"}))


def test_dictionary_is_neither_changed_nor_kept() -> None:
    config: dict[str, Any] = {
        **LEAST,
        "endpoints": [["nas", "22"]],
        "known_hosts": ["a"],
        "host_key_policy": [PIN],
    }
    before = copy.deepcopy(config)
    found = read_settings(config)
    again = read_settings(config)
    assert config == before
    config["endpoints"][0][0] = "other"
    config["known_hosts"].append("b")
    assert found == again


def test_paths_may_be_one_or_many(tmp_path: Path) -> None:
    assert read(key_filename="~/a").key_filename == ("~/a",)
    assert read(key_filename=tmp_path).key_filename == (str(tmp_path),)
    assert read(known_hosts=["a", tmp_path]).known_hosts == ("a", str(tmp_path))
    assert read(known_hosts=[]).known_hosts == ()


@pytest.mark.parametrize("given", [PIN, PIN + "=", [PIN, PIN + "="]])
def test_fingerprint_is_a_pin_with_or_without_padding(given: object) -> None:
    found = read(host_key_policy=given)
    assert found.host_key_policy == "pinned"
    assert set(found.pins) == {PIN}


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read(password="open sesame", passphrase="env:THE_PHRASE")
    assert "open sesame" not in repr(found)
    assert found.password is not None
    assert found.password.value() == "open sesame"
    monkeypatch.setenv("THE_PHRASE", "quiet")
    assert found.passphrase is not None
    assert found.passphrase.value() == "quiet"


def test_settings_survive_a_pickle(home: Path) -> None:
    found = configured(home, "Host nas\nProxyJump bob@gate\n", passphrase="env:THE_PHRASE")
    assert pickle.loads(pickle.dumps(found)) == found


# The OpenSSH configuration


def test_alias_gives_name_port_user_and_keys(home: Path) -> None:
    found = configured(
        home,
        "Host work\n  HostName 10.1.2.3\n  Port 2222\n  User carol\n  IdentityFile ~/.ssh/work\n  IdentitiesOnly yes\n",
        user=None,
        endpoints=[["work"], ["work", None]],
    )
    expected = Endpoint("work", 2222, "10.1.2.3", "carol", (str(home / ".ssh/work"),), identities_only=True)
    assert found.endpoints == (expected, expected)
    assert found.user == "carol"


def test_dictionary_wins_over_the_configuration(home: Path) -> None:
    (found,) = configured(
        home,
        "Host work\n  Port 2222\n  User carol\n  IdentityFile ~/.ssh/work\n",
        endpoints=[["work", 22]],
        key_filename="mine",
    ).endpoints
    assert (found.port, found.user, found.key_files) == (22, "ann", ())


def test_no_configuration_is_read_by_default(home: Path) -> None:
    (home / ".ssh/config").write_text("Host nas\nHostName elsewhere\n", encoding="utf-8")
    assert read().endpoints[0].hostname == "nas"
    assert read(ssh_config_file=False).endpoints[0].hostname == "nas"
    assert read(ssh_config_file=True).endpoints[0].hostname == "elsewhere"
    assert read(ssh_config_file="~/.ssh/config").endpoints[0].hostname == "elsewhere"


def test_users_configuration_need_not_exist(home: Path) -> None:
    assert read(ssh_config_file=True).endpoints[0].hostname == "nas"


def test_user_that_nobody_names_is_refused(home: Path) -> None:
    (home / "empty").write_text("", encoding="utf-8")
    error = refused({"endpoints": [["nas", 22]], "ssh_config_file": home / "empty"})
    assert error.parameter == "user"


def test_jumps_are_looked_up_in_order(home: Path) -> None:
    (found,) = configured(
        home,
        "Host nas\n  ProxyJump bob@first:2200,second\nHost second\n  HostName 10.0.0.2\n  User dave\n  ProxyCommand no %h\n",
    ).endpoints
    assert found.jumps == (
        Endpoint("first", 2200, "first", "bob"),
        Endpoint("second", 22, "10.0.0.2", "dave"),
    )


def test_jump_is_reached_through_its_own(home: Path) -> None:
    (found,) = configured(
        home,
        "Host nas\nProxyJump b@inner\nHost inner\nProxyJump a@outer\nHost outer\nProxyCommand run %h %p %r\n",
    ).endpoints
    assert [hop.host for hop in found.jumps] == ["outer", "inner"]
    assert [hop.proxy_command for hop in found.jumps] == ["run outer 22 a", None]


def test_jump_for_every_host_is_not_its_own(home: Path) -> None:
    (found,) = configured(home, "Host *\nProxyJump a@gate\n").endpoints
    assert [hop.host for hop in found.jumps] == ["gate"]


def test_jumps_in_a_circle_are_refused(home: Path) -> None:
    text = "Host nas\nProxyJump a@one\nHost one\nProxyJump a@two\nHost two\nProxyJump a@one\n"
    with pytest.raises(ConfigurationError, match="circle: nas -> one -> two -> one"):
        configured(home, text)


def test_proxy_command_has_the_values_in_use(home: Path) -> None:
    (found,) = configured(
        home,
        "Host nas\nHostName 10.0.0.9\nPort 1\nUser x\nProxyCommand nc -X 5 %h %p %r\n",
        endpoints=[["nas", 7]],
    ).endpoints
    assert found.proxy_command == "nc -X 5 10.0.0.9 7 ann"


def test_none_switches_proxies_off(home: Path) -> None:
    text = "Host nas\nProxyJump none\nProxyCommand none\nHost *\nProxyJump gate\nProxyCommand x\n"
    (found,) = configured(home, text).endpoints
    assert (found.jumps, found.proxy_command) == ((), None)


def test_user_with_shell_characters_gets_no_proxy_command(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="user"):
        configured(home, "Host *\nProxyCommand ssh %r@gate\n", user="$(touch x)")


def test_included_files_stand_in_their_place(home: Path) -> None:
    (home / ".ssh/conf.d").mkdir()
    (home / ".ssh/conf.d/a").write_text("Host nas\nPort 2201\n", encoding="utf-8")
    (home / ".ssh/conf.d/b").write_text("Host other\nPort 2202\n", encoding="utf-8")
    found = configured(
        home,
        "Include conf.d/*\nUser eve\nHost nas\nPort 9\n",
        user=None,
        endpoints=[["nas"], ["other"], ["third"]],
    )
    assert [(e.port, e.user) for e in found.endpoints] == [(2201, "eve"), (2202, "eve"), (22, "eve")]


def test_file_that_includes_itself_is_refused(home: Path) -> None:
    with pytest.raises(ConfigurationError, match="Include nests deeper"):
        configured(home, f"Include {home}/ssh_config\n")


@pytest.mark.parametrize(
    "text", ["Host\n", "Match exec\n", "Host nas\nPort many\n", "Host nas\nHostName a;b\n"]
)
def test_broken_configuration_is_refused(home: Path, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        configured(home, text, endpoints=[["nas"]])
    assert raised.value.parameter == "ssh_config_file"


def test_configuration_without_paramiko_names_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(MissingClientError, match=r"pip install paramiko$"):
        configured(home, "")
    assert read().user == "ann"


USERS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
EVERYBODYS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


@pytest.mark.parametrize(
    ("text", "files", "new"),
    [
        ("UserKnownHostsFile ~/a", ("~/a", *EVERYBODYS), "~/a"),
        ("UserKnownHostsFile a b", ("a", "b", *EVERYBODYS), "a"),
        ('userknownhostsfile = "a b" c # d', ("a b", "c", *EVERYBODYS), "a b"),
        ('UserKnownHostsFile "a b"', ("a b", *EVERYBODYS), "a b"),
        ("UserKnownHostsFile none", EVERYBODYS, None),
        ("UserKnownHostsFile NONE\nGlobalKnownHostsFile none", (), None),
        ("GlobalKnownHostsFile /x ~/y", (*USERS, "/x", "~/y"), USERS[0]),
        ("GlobalKnownHostsFile none", USERS, USERS[0]),
        ("UserKnownHostsFile a\nUserKnownHostsFile b", ("a", *EVERYBODYS), "a"),
        ("Host x\nUserKnownHostsFile b\nHost nas\nUserKnownHostsFile c", ("c", *EVERYBODYS), "c"),
        (
            "HostName real\nUserKnownHostsFile %h-%n-%p-%r-%k-%%",
            ("real-nas-22-ann-nas-%", *EVERYBODYS),
            "real-nas-22-ann-nas-%",
        ),
        ("HostKeyAlias other\nUserKnownHostsFile %k", ("other", *EVERYBODYS), "other"),
        ("UserKnownHostsFile ${WHERE}/x", ("/where/x", *EVERYBODYS), "/where/x"),
        ("GlobalKnownHostsFile %h", (*USERS, "%h"), USERS[0]),
    ],
)
def test_known_hosts_of_the_configuration(
    home: Path, monkeypatch: pytest.MonkeyPatch, text: str, files: tuple[str, ...], new: str | None
) -> None:
    monkeypatch.setenv("WHERE", "/where")
    (found,) = configured(home, f"Host nas\n{text}\n").endpoints
    assert found.known_hosts == files
    assert found.new_host_keys == new


def test_tokens_of_this_side(home: Path) -> None:
    (found,) = configured(home, "UserKnownHostsFile %d/%u %i %L %l\n").endpoints
    user, name = getpass.getuser(), socket.gethostname()
    short = name.partition(".")[0]
    assert found.known_hosts == (f"{home}/{user}", str(os.getuid()), short, name, *EVERYBODYS)


@pytest.mark.parametrize("value", ["%C", "%j", "x%", "${NO_SUCH_VARIABLE}", '"x'])
def test_what_cannot_be_replaced_is_refused(home: Path, value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ssh_config_file: .*ssh_config"):
        configured(home, f"UserKnownHostsFile {value}\n")


def test_each_jump_has_its_own_known_hosts(home: Path) -> None:
    text = (
        "Host nas\nProxyJump bob@gate:2200\nUserKnownHostsFile %h\nHostKeyAlias NAS-1\n"
        "Host gate\nHostName gate.example\nUserKnownHostsFile %h-%p-%r\nStrictHostKeyChecking accept-new\n"
    )
    (found,) = configured(home, text).endpoints
    (jump,) = found.jumps
    assert (found.known_hosts, found.host_key_alias) == (("nas", *EVERYBODYS), "NAS-1")
    assert (jump.known_hosts, jump.host_key_alias) == (("gate.example-2200-bob", *EVERYBODYS), None)
    assert (found.host_key_policy, jump.host_key_policy) == (None, "accept-new")


@pytest.mark.parametrize(
    ("value", "policy"),
    [
        ("yes", "strict"),
        ("ask", "strict"),
        ("accept-new", "accept-new"),
        ("no", "accept-new"),
        ("OFF", "accept-new"),
    ],
)
def test_strict_host_key_checking(home: Path, value: str, policy: str) -> None:
    text = f"StrictHostKeyChecking {value}\nUserKnownHostsFile x\n"
    assert configured(home, text).endpoints[0].host_key_policy == policy
    (found,) = configured(home, text, host_key_policy=PIN, known_hosts="mine").endpoints
    assert (found.host_key_policy, found.known_hosts, found.new_host_keys) == (None, None, None)
