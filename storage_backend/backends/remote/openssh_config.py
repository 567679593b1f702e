"""OpenSSHConfig: what the user's OpenSSH configuration says about a host."""

from __future__ import annotations

import getpass
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from storage_backend.backends.remote.library import ssh_library
from storage_backend.errors import ConfigurationError

INCLUDE_DEPTH = 16  # READCONF_MAX_DEPTH, readconf.c of OpenSSH

_INCLUDE = re.compile(r"\s*include(?:\s*=\s*|\s+)(.+?)\s*", re.IGNORECASE)
_BLOCK = re.compile(r"\s*(?:host|match)\b.*", re.IGNORECASE)
_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>.+)@)?(?:\[(?P<address>[^\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>\d+))?/?"
)


@dataclass(frozen=True, slots=True)
class Jump:
    """One part of ProxyJump, as written."""

    host: str
    port: int | None
    user: str | None


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What the configuration says about one host; see ssh_config(5)."""

    hostname: str
    port: str | None
    user: str | None
    key_files: tuple[str, ...]
    identities_only: bool
    jumps: tuple[Jump, ...]
    proxy_command: str | None


@dataclass(frozen=True, slots=True)
class OpenSSHConfig:
    """A file in the format of ssh_config(5), read once.

    Attributes:
        path: the file.
        text: its lines, those of the files that it includes in their place.
    """

    path: str
    text: str

    @classmethod
    def read(cls, path: str) -> Self:
        """The configuration in the file *path*.

        Raises:
            ConfigurationError: it cannot be read.
        """
        return cls(path, "\n".join(_lines(path, 0)) + "\n")

    def lookup(self, host: str, port: int | None, user: str | None) -> HostOptions:
        """What it says about *host*, where *port* and *user* win over it if they are given.

        Raises:
            ConfigurationError: it has an error.
            MissingClientError: paramiko, which parses it, is not installed.
        """
        paramiko = ssh_library()
        # The first value counts, so that %p and %r mean these.
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
        """Who OpenSSH takes where nothing names an account."""
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
            jumps=() if jump is None or jump.lower() == "none" else tuple(map(self._jump, jump.split(","))),
            proxy_command=None if command is None else command.replace("%%", "%"),
        )

    def _jump(self, text: str) -> Jump:
        found = _JUMP.fullmatch(text.strip())
        if found is None:
            raise self._wrong(f"ProxyJump {text!r} is not of the form user@host:port")
        port = found["port"]
        return Jump(found["address"] or found["host"], None if port is None else int(port), found["user"])

    def _wrong(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"ssh_config_file: {self.path}: {reason}", parameter="ssh_config_file")


def _lines(path: str, depth: int) -> list[str]:
    """The lines of *path* and of what it includes: paramiko knows no Include."""
    if depth > INCLUDE_DEPTH:
        raise ConfigurationError(
            f"ssh_config_file: {path}: Include goes deeper than {INCLUDE_DEPTH}", parameter="ssh_config_file"
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
        # A block that began in an included file ends with it.
        lines.append(block)
    return lines
