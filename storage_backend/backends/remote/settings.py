"""SSHConfig: the configuration of a RemoteStorage. SSHSettings: the same, validated and picklable."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Required, TypeAlias

from typing_extensions import TypedDict, override

from storage_backend import url_escaping
from storage_backend.backends.remote.openssh_config import OpenSSHConfig
from storage_backend.errors import ConfigurationError
from storage_backend.paths import expanded
from storage_backend.secrets import Secret

FilePath: TypeAlias = str | os.PathLike[str]

CONNECTION_TIMEOUT = 2.0  # seconds
IO_TIMEOUT = 30.0  # seconds
# The defaults of UserKnownHostsFile and GlobalKnownHostsFile, ssh_config(5).
USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
KNOWN_HOSTS = USER_KNOWN_HOSTS + GLOBAL_KNOWN_HOSTS
USER_CONFIG = "~/.ssh/config"
SSH_PORT = 22

POLICIES = ("strict", "accept-new")

# Characters that a ProxyCommand's shell would interpret: refused since OpenSSH 9.6, `valid_hostname` in ssh.c.
_HOST = re.compile(r"[^\x00-\x20\x7f'`\"$\\;&<>|(){},\-/@][^\x00-\x20\x7f'`\"$\\;&<>|(){},/@]*")
_USER = re.compile(r"[^\x00-\x1f\x7f]+")
_SHELL_SAFE_USER = re.compile(r"(?!-)[^\x00-\x20\x7f'`\"$;&<>|(){}\\]+")
_PIN = re.compile(r"SHA256:([A-Za-z0-9+/]{43})=?")


class SSHConfig(TypedDict, total=False):
    """How to reach a server by SSH. Only `endpoints` and `user` are required; `user` may come from `ssh_config_file`.

    Attributes:
        user: the account on the server.
        endpoints: its addresses, in order of preference: `[["10.0.0.5", 22], ["nas.example.org", 2222]]`. A
            port is a number from 1 to 65535 or its digits. `["nas"]` or `["nas", None]`: the port that `ssh_config_file`
            has for it, else 22.
        connection_timeout: seconds to accept a TCP connection. 2 by default. Later steps have their own timeouts; see `storage_backend.backends.remote.dialing`.
        key_filename: a private key, or a list of them, instead of ~/.ssh/id_ed25519, id_ecdsa and id_rsa. A certificate
            `NAME-cert.pub` next to it is used too. A public key, `NAME.pub`, selects that key of the agent.
        password: for password and keyboard-interactive authentication, or "env:NAME" or "file:PATH".
        passphrase: of encrypted private keys, or "env:NAME" or "file:PATH".
        agent: whether to use keys of the SSH agent at *SSH_AUTH_SOCK*, or IdentityAgent of `ssh_config_file`. True by default.
        known_hosts: a file, or a list of them, in OpenSSH's format. "accept-new" writes to the first. By default
            UserKnownHostsFile and GlobalKnownHostsFile of `ssh_config_file`; if these are not set, ~/.ssh/known_hosts,
            ~/.ssh/known_hosts2, /etc/ssh/ssh_known_hosts and /etc/ssh/ssh_known_hosts2.
        host_key_policy: for a host key that is not in `known_hosts`. "strict" (the default): it is refused, except on a
            loopback address, where it is accepted with a warning. "accept-new": it is accepted and
            added. "SHA256:...", or a list of such fingerprints: only these keys are accepted, and `known_hosts` is not
            read. No policy accepts a key that *differs* from the known one. If not given, StrictHostKeyChecking of
            `ssh_config_file` applies: "accept-new", "no" and "off" are "accept-new", anything else is "strict".
        ssh_config_file: an OpenSSH configuration, or True for ~/.ssh/config. None is read by default. It may set
            Host and Match, Include, HostName, User, Port, IdentityFile, IdentitiesOnly, IdentityAgent, ProxyJump, ProxyCommand,
            UserKnownHostsFile, GlobalKnownHostsFile, HostKeyAlias and StrictHostKeyChecking; keys of SSHConfig take precedence.
        keepalive: seconds without traffic between keepalive messages. 0 by default: none.
        io_timeout: seconds to wait for data of a reply before the connection counts as lost. 30 by default.
        max_connections: maximum number of open connections. 1 by default.
        shell: "auto" (the default) uses the account's POSIX shell, if any, for bulk operations; "never" uses only SFTP.
        non_atomic_overwrite: on a server that cannot replace a file atomically, whether a write moves the old object aside
            before it renames the new one, so that for a moment neither exists. True by default, with one warning per server.
            If the write fails, the old object gets its name back; if it is killed, the next write to that directory or `cleanup`
            restores it. False: such a write raises UnsupportedOperationError.
    """

    user: str
    endpoints: Required[Sequence[Sequence[str | int | None]]]
    connection_timeout: float
    key_filename: FilePath | Sequence[FilePath]
    password: str
    passphrase: str
    agent: bool
    known_hosts: FilePath | Sequence[FilePath]
    host_key_policy: str | Sequence[str]
    ssh_config_file: FilePath | bool
    keepalive: float
    io_timeout: float
    max_connections: int
    shell: Literal["auto", "never"]
    non_atomic_overwrite: bool


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address of a server, with its ssh_config(5) options.

    Attributes:
        host: as listed.
        port: as listed, or from the OpenSSH configuration.
        hostname: HostName, or `host`; used to connect and in known_hosts.
        user: the account.
        key_files: IdentityFile, unless `key_filename` is given.
        identities_only: whether to use the agent only for `key_files`.
        identity_agent: IdentityAgent: the agent's socket, "" for no agent, None for SSH_AUTH_SOCK.
        jumps: ProxyJump: hosts to connect through, in order.
        proxy_command: ProxyCommand: program that makes the connection.
        known_hosts: UserKnownHostsFile and GlobalKnownHostsFile, unless `known_hosts` is given.
        new_host_keys: the one of these files to which new keys are added.
        host_key_alias: HostKeyAlias: name of the host in known_hosts.
        host_key_policy: StrictHostKeyChecking, unless `host_key_policy` is given.
    """

    host: str
    port: int
    hostname: str
    user: str
    key_files: tuple[str, ...] = ()
    identities_only: bool = False
    jumps: tuple[Endpoint, ...] = ()
    proxy_command: str | None = None
    known_hosts: tuple[str, ...] | None = None
    new_host_keys: str | None = None
    host_key_alias: str | None = None
    host_key_policy: Literal["strict", "accept-new"] | None = None
    identity_agent: str | None = None

    def without_jumps(self, *, keep_command: bool) -> Endpoint:
        """The endpoint without jump hosts; without its ProxyCommand too unless *keep_command*."""
        return replace(self, jumps=(), proxy_command=self.proxy_command if keep_command else None)

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SSHSettings:
    """A validated `SSHConfig`. Paths are as given; "~" is expanded on use.

    Attributes:
        user: of the first endpoint.
        pins: fingerprints "SHA256:..." without padding; empty unless the policy is "pinned".
    """

    user: str
    endpoints: tuple[Endpoint, ...]
    connection_timeout: float
    key_filename: tuple[str, ...]
    password: Secret | None
    passphrase: Secret | None
    agent: bool
    known_hosts: tuple[str, ...]
    host_key_policy: Literal["strict", "accept-new", "pinned"]
    pins: tuple[str, ...]
    keepalive: float
    io_timeout: float
    max_connections: int
    shell: Literal["auto", "never"]
    non_atomic_overwrite: bool


def read_settings(ssh_config: object) -> SSHSettings:
    """Validate *ssh_config*, an `SSHConfig`, without changing or keeping it.

    Raises:
        ConfigurationError: a value is wrong; names the key.
        MissingClientError: paramiko is not installed, and `ssh_config_file` needs it.
    """
    if not isinstance(ssh_config, Mapping):
        raise _wrong(
            "ssh_config", f'must be a dictionary with "user" and "endpoints", not {type(ssh_config).__name__}'
        )
    given: dict[object, object] = dict(ssh_config)
    _check_keys(given)
    user = _user(given.get("user"))
    key_filename = _paths("key_filename", given.get("key_filename"))
    config = _openssh_config(given.get("ssh_config_file"))
    endpoints = tuple(
        _endpoint(
            host,
            port,
            user,
            config,
            _Overrides(bool(key_filename), "known_hosts" in given, "host_key_policy" in given),
        )
        for host, port in _addresses(given.get("endpoints"))
    )
    policy, pins = _policy(given.get("host_key_policy", "strict"))
    known_hosts = _paths("known_hosts", given.get("known_hosts", KNOWN_HOSTS))
    if policy == "accept-new" and not known_hosts:
        raise _wrong("known_hosts", 'host_key_policy="accept-new" needs a file to add keys to')
    return SSHSettings(
        user=endpoints[0].user,
        endpoints=endpoints,
        connection_timeout=_seconds(
            "connection_timeout", given.get("connection_timeout", CONNECTION_TIMEOUT)
        ),
        key_filename=key_filename,
        password=_secret("password", given.get("password")),
        passphrase=_secret("passphrase", given.get("passphrase")),
        agent=_flag("agent", given.get("agent", True)),
        known_hosts=known_hosts,
        host_key_policy=policy,
        pins=pins,
        keepalive=_seconds("keepalive", given.get("keepalive", 0.0), zero=True),
        io_timeout=_seconds("io_timeout", given.get("io_timeout", IO_TIMEOUT)),
        max_connections=_count("max_connections", given.get("max_connections", 1)),
        shell=_shell(given.get("shell", "auto")),
        non_atomic_overwrite=_flag("non_atomic_overwrite", given.get("non_atomic_overwrite", True)),
    )


def location_for(settings: SSHSettings, base_dir: str) -> str:
    """`ssh://user@host1:22,host2:2222/~/folder`, percent-encoded; "~" stands for the home directory."""
    hosts = ",".join(map(str, settings.endpoints))
    path = (
        base_dir if base_dir.startswith("/") else f"/{base_dir}" if base_dir[:1] == "~" else f"/~/{base_dir}"
    )
    written = url_escaping.quoted(path, safe="/~")
    if base_dir == "/~" or base_dir.startswith("/~/"):
        written = f"/%7E{written[2:]}"  # a directory of that name in the root
    return f"ssh://{url_escaping.quoted(settings.user, safe='')}@{hosts}{written}"


def _check_keys(given: Mapping[object, object]) -> None:
    known = sorted(SSHConfig.__annotations__)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise _wrong("ssh_config", f"unknown key {key!r}{hint}; known: {', '.join(known)}")


def _user(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _USER.fullmatch(value):
        raise _wrong("user", f"{value!r} is not an account name")
    return value


def _addresses(value: object) -> list[tuple[str, int | None]]:
    if value is None or value in ((), []):
        raise _wrong("endpoints", 'at least one is needed, as in [["localhost", 22]]')
    if not isinstance(value, list | tuple):
        raise _wrong("endpoints", f"{value!r} is not a list of [host, port]")
    return [_address(item) for item in value]


def _address(value: object) -> tuple[str, int | None]:
    if not isinstance(value, list | tuple) or len(value) not in {1, 2}:
        raise _wrong("endpoints", f"{value!r} is not of the form [host, port]")
    return _host("endpoints", value[0]), None if len(value) == 1 else _port("endpoints", value[1])


def _host(name: str, value: object) -> str:
    if isinstance(value, str):
        host = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        if _HOST.fullmatch(host):
            return host
    raise _wrong(name, f"{value!r} is not a host name or address")


def _port(name: str, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise _wrong(name, f"{value!r} is not a port from 1 to 65535")
    return value


def _openssh_config(value: object) -> OpenSSHConfig | None:
    if value is None or value is False:
        return None
    if value is True:
        path = expanded(USER_CONFIG)
        return OpenSSHConfig.read(path) if os.path.exists(path) else None  # noqa: PTH110 - stays text
    paths = _paths("ssh_config_file", value)
    if len(paths) != 1:
        raise _wrong("ssh_config_file", "must be one file")
    return OpenSSHConfig.read(expanded(paths[0]))


class _Overrides(NamedTuple):
    """Which keys are given, which then take precedence over the OpenSSH configuration."""

    key_filename: bool
    known_hosts: bool
    host_key_policy: bool


def _endpoint(
    host: str, port: int | None, user: str | None, config: OpenSSHConfig | None, given: _Overrides
) -> Endpoint:
    if config is None:
        if user is None:
            raise _wrong("user", "missing; it is the account on the server")
        return Endpoint(host, port or SSH_PORT, host, user)
    return _configured(host, port, user, config, given, path=())


def _configured(
    host: str,
    port: int | None,
    user: str | None,
    config: OpenSSHConfig,
    given: _Overrides,
    *,
    path: tuple[str, ...],
    local_user: str | None = None,
) -> Endpoint:
    """The endpoint as in *config*; *port* and *user* take precedence.

    *path* lists the hosts whose jumps led here, to detect cycles; *local_user* is the default account.
    """
    if host in path:
        raise _wrong("ssh_config_file", f"ProxyJump goes in a circle: {' -> '.join((*path, host))}")
    found = config.lookup(host, port, user)
    who = user or found.user or local_user
    if who is None:
        raise _wrong("user", f"missing, and {config.path} sets none for {host!r}")
    hostname = _host("ssh_config_file", found.hostname)
    command = found.proxy_command
    if command is not None and not _SHELL_SAFE_USER.fullmatch(who):
        raise _wrong("user", f"{who!r} has characters that a ProxyCommand's shell would interpret")
    jumps: tuple[Endpoint, ...] = ()
    # With "Host *", a jump host may be configured as its own jump host.
    hops = () if found.jumps and found.jumps[-1].host == host else found.jumps
    for at, hop in enumerate(hops):
        # A hop is reached through the previous ones, whatever its own configuration.
        through = _configured(
            _host("ssh_config_file", hop.host),
            hop.port,
            hop.user,
            config,
            given,
            path=(*path, host),
            local_user=config.local_user(),
        )
        jumps = (*jumps, *(through.jumps if at == 0 else ()), through.without_jumps(keep_command=at == 0))
    users, everybodys = found.user_known_hosts, found.global_known_hosts
    given_files = given.known_hosts or (users is None and everybodys is None)
    users = USER_KNOWN_HOSTS if users is None else users
    everybodys = GLOBAL_KNOWN_HOSTS if everybodys is None else everybodys
    return Endpoint(
        host,
        port or _port("ssh_config_file", found.port) or SSH_PORT,
        hostname,
        who,
        () if given.key_filename else found.key_files,
        found.identities_only,
        jumps,
        None if jumps else command,
        None if given_files else users + everybodys,
        None if given_files or not users else users[0],
        found.host_key_alias,
        None if given.host_key_policy else found.host_key_policy,
        found.identity_agent,
    )


def _policy(value: object) -> tuple[Literal["strict", "accept-new", "pinned"], tuple[str, ...]]:
    if value == "strict":
        return "strict", ()
    if value == "accept-new":
        return "accept-new", ()
    pins = tuple(value) if isinstance(value, list | tuple) and value else (value,)
    return "pinned", tuple(_pin(pin) for pin in pins)


def _pin(value: object) -> str:
    found = _PIN.fullmatch(value) if isinstance(value, str) else None
    if found is not None:
        return f"SHA256:{found[1]}"
    raise _wrong(
        "host_key_policy",
        f'{value!r} is unknown; known: {", ".join(POLICIES)} and a fingerprint "SHA256:...", as ssh-keygen -l shows it',
    )


def _paths(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    items = value if isinstance(value, list | tuple) else (value,)
    found = []
    for item in items:
        path = os.fspath(item) if isinstance(item, os.PathLike) else item
        if not isinstance(path, str) or not path or "\0" in path:
            raise _wrong(name, f"{item!r} is not a file path")
        found.append(path)
    return tuple(found)


def _secret(name: str, value: object) -> Secret | None:
    if value is not None and not isinstance(value, str):
        raise _wrong(name, "must be a string")
    return Secret.given(name, value)


def _seconds(name: str, value: object, *, zero: bool = False) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < math.inf
        or (value == 0 and not zero)
    ):
        raise _wrong(name, f"{value!r} is not a number of seconds {'of at least' if zero else 'above'} 0")
    return float(value)


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(name, f"{value!r} is not a number of at least 1")
    return value


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, f"{value!r} is neither True nor False")
    return value


def _shell(value: object) -> Literal["auto", "never"]:
    if value == "auto":
        return "auto"
    if value == "never":
        return "never"
    raise _wrong("shell", f"{value!r} is unknown; known: auto, never")


def _wrong(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{name}: {reason}", parameter=name)
