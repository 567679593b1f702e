"""OpenSSHConfig: looks up a host's options in an OpenSSH configuration file."""

from __future__ import annotations

import getpass
import glob
import os
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from storage_backend.backends.remote.library import ssh_library
from storage_backend.errors import ConfigurationError

INCLUDE_DEPTH = 16  # READCONF_MAX_DEPTH, readconf.c of OpenSSH

_INCLUDE = re.compile(r"\s*include(?:\s*=\s*|\s+)(.+?)\s*", re.IGNORECASE)
_BLOCK = re.compile(r"\s*(?:host|match)\b.*", re.IGNORECASE)
_FILES = re.compile(r"\s*((?:user|global)knownhostsfile)(?:\s*=\s*|\s+)(.+)", re.IGNORECASE)
_SEPARATOR = "\x1f"  # between the files of such a line: paramiko returns it as one string without quotes
_TOKEN = re.compile(r"%(.?)|\$\{([^}]*)\}")
_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<address>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?/?"
)


@dataclass(frozen=True, slots=True)
class Jump:
    """One host of ProxyJump, as written."""

    host: str
    port: int | None
    user: str | None


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The options for one host; see ssh_config(5). None means not set.

    Attributes:
        identity_agent: IdentityAgent: a path, "" for no agent; None also for SSH_AUTH_SOCK.
        user_known_hosts: UserKnownHostsFile.
        global_known_hosts: GlobalKnownHostsFile.
        host_key_alias: HostKeyAlias.
        host_key_policy: StrictHostKeyChecking, in the terms of `SSHConfig`.
    """

    hostname: str
    port: str | None
    user: str | None
    key_files: tuple[str, ...]
    identities_only: bool
    identity_agent: str | None
    jumps: tuple[Jump, ...]
    proxy_command: str | None
    user_known_hosts: tuple[str, ...] | None
    global_known_hosts: tuple[str, ...] | None
    host_key_alias: str | None
    host_key_policy: Literal["strict", "accept-new"] | None


@dataclass(frozen=True, slots=True)
class OpenSSHConfig:
    """A file in the format of ssh_config(5), read once.

    Attributes:
        path: the file.
        text: its lines, with included files inserted.
    """

    path: str
    text: str

    @classmethod
    def read(cls, path: str) -> Self:
        """Read the file *path*.

        Raises:
            ConfigurationError: it cannot be read.
        """
        return cls(path, "\n".join(_lines(path, 0)) + "\n")

    def lookup(self, host: str, port: int | None, user: str | None) -> HostOptions:
        """The options for *host*; *port* and *user* take precedence if they are given.

        Raises:
            ConfigurationError: the file has an error.
            MissingClientError: paramiko, which parses it, is not installed.
        """
        paramiko = ssh_library()
        # The first value of an option wins; %p and %r expand to it.
        head = ["Host *"]
        if port is not None:
            head.append(f"Port {port}")
        if user is not None:
            head.append(f"User {user}")
        head.append("Host *")
        try:
            found = paramiko.SSHConfig.from_text("\n".join((*head, self.text))).lookup(host)
            return self._options(host, found)
        except (paramiko.SSHException, ImportError, KeyError, ValueError, OSError) as error:
            if isinstance(error, ConfigurationError):
                raise
            raise self._wrong(f"about {host!r}: {error}") from error

    @staticmethod
    def local_user() -> str:
        """OpenSSH's default account."""
        return getpass.getuser()

    def _options(self, host: str, found: Any) -> HostOptions:
        jump = found.get("proxyjump")
        command = found.get("proxycommand")
        return HostOptions(
            hostname=found.get("hostname", host),
            port=found.get("port"),
            user=found.get("user"),
            key_files=tuple(path for path in found.get("identityfile", ()) if path.lower() != "none"),
            identities_only=found.get("identitiesonly", "no").lower() == "yes",
            identity_agent=self._agent(host, found),
            jumps=() if jump is None or jump.lower() == "none" else tuple(map(self._jump, jump.split(","))),
            proxy_command=None if command is None else command.replace("%%", "%"),
            user_known_hosts=self._files(host, found, "userknownhostsfile", tokens=True),
            global_known_hosts=self._files(host, found, "globalknownhostsfile", tokens=False),
            host_key_alias=found.get("hostkeyalias"),
            host_key_policy=_POLICIES.get(found.get("stricthostkeychecking", "").lower()),
        )

    def _agent(self, host: str, found: Any) -> str | None:
        text = found.get("identityagent")
        if text is None or text == "SSH_AUTH_SOCK":
            return None
        if text.lower() == "none":
            return ""
        if text.startswith("$") and not text.startswith("${"):
            return os.environ.get(text[1:], "")
        return self._replaced(text, "IdentityAgent", _tokens(host, found))

    def _files(self, host: str, found: Any, option: str, *, tokens: bool) -> tuple[str, ...] | None:
        text = found.get(option)
        if text is None or text.lower() == "none":
            return None if text is None else ()
        files = tuple(text.split(_SEPARATOR))
        return (
            tuple(self._replaced(file, option, _tokens(host, found)) for file in files) if tokens else files
        )

    def _replaced(self, text: str, option: str, tokens: Mapping[str, str]) -> str:
        """*text* with tokens and environment variables expanded."""

        def value(match: re.Match[str]) -> str:
            token, variable = match.groups()
            replaced = tokens.get(token) if variable is None else os.environ.get(variable)
            if replaced is None:
                raise self._wrong(f"{option} {text!r}: no value for {match[0]!r}")
            return replaced

        return _TOKEN.sub(value, text)

    def _jump(self, text: str) -> Jump:
        found = _JUMP.fullmatch(text.strip())
        if found is None:
            raise self._wrong(f"ProxyJump {text!r} is not of the form user@host:port")
        port = found["port"]
        return Jump(found["address"] or found["host"], None if port is None else int(port), found["user"])

    def _wrong(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"ssh_config_file: {self.path}: {reason}", parameter="ssh_config_file")


_POLICIES: Mapping[str, Literal["strict", "accept-new"]] = {
    "yes": "strict",
    "true": "strict",
    "ask": "strict",  # there is no prompt
    "accept-new": "accept-new",
    # OpenSSH even accepts a changed key; we never do.
    "no": "accept-new",
    "false": "accept-new",
    "off": "accept-new",
}


def _tokens(host: str, found: Any) -> Mapping[str, str]:
    """TOKENS in ssh_config(5), except %C and %j."""
    local = socket.gethostname()
    user = getpass.getuser()
    return {
        "%": "%",
        "d": os.path.expanduser("~"),  # noqa: PTH111 - stays text
        "h": found.get("hostname", host),
        "i": str(os.getuid()),
        "k": found.get("hostkeyalias", host),
        "L": local.partition(".")[0],
        "l": local,
        "n": host,
        "p": str(found.get("port", 22)),
        "r": found.get("user", user),
        "u": user,
    }


def _lines(path: str, depth: int) -> list[str]:
    """The lines of *path* with included files inserted: paramiko does not support Include."""
    if depth > INCLUDE_DEPTH:
        raise ConfigurationError(
            f"ssh_config_file: {path}: Include nests deeper than {INCLUDE_DEPTH}", parameter="ssh_config_file"
        )
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"ssh_config_file: cannot read it: {error}", parameter="ssh_config_file"
        ) from error
    lines = []
    block = "Host *"
    for line in text.splitlines():
        files = _FILES.fullmatch(line)
        if files is not None:
            try:
                names = shlex.split(files[2], comments=True)
            except ValueError as error:
                raise ConfigurationError(
                    f"ssh_config_file: {path}: {line.strip()!r}: {error}", parameter="ssh_config_file"
                ) from error
            lines.append(f"{files[1]} {_SEPARATOR.join(names)}")
            continue
        included = _INCLUDE.fullmatch(line)
        if included is None:
            if _BLOCK.fullmatch(line):
                block = line
            lines.append(line)
            continue
        for pattern in included[1].replace('"', " ").split():
            # Relative to ~/.ssh for a user's file, ssh_config(5).
            whole = os.path.join(os.path.expanduser("~/.ssh"), os.path.expanduser(pattern))  # noqa: PTH111, PTH118 - a pattern is no path
            for name in sorted(glob.glob(whole)):  # noqa: PTH207 - may be absolute, which Path.glob refuses
                lines += _lines(name, depth + 1)
        # A Host block of an included file ends with that file.
        lines.append(block)
    return lines
