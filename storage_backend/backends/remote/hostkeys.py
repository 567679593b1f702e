"""HostKeyPolicy: checks a server's host key against known_hosts or pinned fingerprints.

We do not use paramiko's HostKeys: it stops at a `@cert-authority` line, ignores `@revoked` and patterns, and drops keys of
unsupported types, so that a changed key would look like an unknown one.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import ipaddress
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage_backend.backends.remote.settings import SSH_PORT, Endpoint, SSHSettings
from storage_backend.errors import AuthenticationError, ConfigurationError
from storage_backend.paths import expanded

logger = logging.getLogger(__name__)

_AUTHORITY = "@cert-authority"
# RFC 8332: one key type, signatures with either hash.
_RSA_ALGORITHMS = ("rsa-sha2-512", "rsa-sha2-256")


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A line of known_hosts that matches the host.

    Attributes:
        location: "file:line".
        authority: whether the key belongs to a certificate authority.
    """

    kind: str
    blob: bytes
    revoked: bool
    location: str
    authority: bool = False


class HostKeyPolicy:
    """The `missing_host_key_policy` of a `paramiko.SSHClient`, for one connection to one endpoint.

    A client without host keys calls it for every key, before it sends anything about the user.

    Args:
        peer: returns the address we are connected to; None if a ProxyCommand or a jump host makes the connection.
        without: key types not to request.

    Raises:
        ConfigurationError: a file exists but cannot be read.
    """

    def __init__(
        self,
        settings: SSHSettings,
        endpoint: Endpoint,
        *,
        peer: Callable[[], str | None],
        without: Iterable[str] = (),
    ) -> None:
        alias = endpoint.host_key_alias
        self.name = entry_name(endpoint.hostname, endpoint.port) if alias is None else alias.lower()
        self.mismatch: str | None = None  # type of a key that is not pinned
        self._settings = settings
        self._endpoint = endpoint
        self._peer = peer
        self._without = frozenset(without)
        self._known: list[KnownKey] = []
        self._authorities: list[str] = []
        self._bare: set[bytes] = set()
        self._files = settings.known_hosts if endpoint.known_hosts is None else endpoint.known_hosts
        self._policy = endpoint.host_key_policy or settings.host_key_policy
        if self._policy != "pinned":
            found = known_keys(self._files, self.name)
            self._known = [key for key in found if not key.authority]
            self._authorities = [key.location for key in found if key.authority]
            if not self._known and alias is None and endpoint.port != SSH_PORT:
                # As OpenSSH ("checking without port identifier", sshconnect.c): an entry without a port may accept a key but never
                # refuse one, as another server may run on that port.
                found = known_keys(self._files, entry_name(endpoint.hostname, SSH_PORT))
                bare = [key for key in found if not key.authority]
                self._authorities += [key.location for key in found if key.authority]
                self._bare = {key.blob for key in bare if not key.revoked}
                self._known = [key for key in bare if key.revoked]

    def order(self, algorithms: Sequence[str]) -> tuple[str, ...]:
        """*algorithms*, those of known keys first, so that a server with several keys sends one that can be checked."""
        known = {name for key in self._known if not key.revoked for name in _algorithms(key.kind)}
        without = {name for kind in self._without for name in _algorithms(kind)}
        usable = [name for name in algorithms if name not in without]
        return tuple(sorted(usable, key=lambda name: name not in known))

    def missing_host_key(self, client: object, hostname: str, key: Any) -> None:  # noqa: ARG002 - paramiko's interface
        """Accept *key*, a `paramiko.PKey`.

        Raises:
            AuthenticationError: the key is refused.
        """
        kind, blob = str(key.get_name()), bytes(key.asbytes())
        if self._policy == "pinned":
            self._check_pin(kind, blob)
            return
        for known in self._known:
            if known.revoked and known.blob == blob:
                raise self._refused(f"its {kind} key {fingerprint(blob)} is revoked by {known.location}")
        entries = [known for known in self._known if not known.revoked]
        if any(known.blob == blob for known in entries) or blob in self._bare:
            return
        if entries:
            raise self._changed(kind, blob, entries)
        if self._policy == "accept-new":
            self._remember(kind, blob)
            return
        # With HostKeyAlias, the loopback address is a tunnel to another machine.
        peer = self._peer() if self._endpoint.host_key_alias is None else None
        if peer is None or not is_loopback(peer):
            raise self._refused(
                f"it sent the {kind} key {fingerprint(blob)}, and {self.name} is in none of "
                f"the known_hosts files ({', '.join(self._files) or 'there are none'}){self._unused()}. Compare it with what `ssh-keygen -lf "
                f"/etc/ssh/ssh_host_{_file_kind(kind)}_key.pub` shows on the server itself; if they are equal, set "
                f'host_key_policy="{fingerprint(blob)}"'
            )
        logger.warning(
            "%s: accepted the unknown host key %s because %s is this machine; to be sure, set host_key_policy=%r",
            self._endpoint,
            fingerprint(blob),
            peer,
            fingerprint(blob),
        )

    def _unused(self) -> str:
        if not self._authorities:
            return ""
        return f" except as {_AUTHORITY} ({', '.join(self._authorities)}), which is not used: host certificates are not supported"

    def _check_pin(self, kind: str, blob: bytes) -> None:
        if fingerprint(blob) not in self._settings.pins:
            self.mismatch = kind
            raise self._refused(
                f"it sent the {kind} key {fingerprint(blob)}, but host_key_policy allows only {' and '.join(self._settings.pins)}"
            )

    def _remember(self, kind: str, blob: bytes) -> None:
        path = (
            self._settings.known_hosts[0]
            if self._endpoint.known_hosts is None
            else self._endpoint.new_host_keys
        )
        if path is None:
            raise self._refused(
                f"its {kind} key {fingerprint(blob)} is new, but UserKnownHostsFile names no file to add it to"
            )
        try:
            others = remember(path, self.name, kind, blob)
        except OSError as error:
            # If it were not stored, any key would be accepted each time.
            raise self._refused(
                f"its {kind} key {fingerprint(blob)} is new and cannot be written to {path}: {error}"
            ) from error
        if others:
            raise self._changed(kind, blob, others)
        logger.info("%s: added its %s key %s to %s", self._endpoint, kind, fingerprint(blob), path)

    def _changed(self, kind: str, blob: bytes, known: Sequence[KnownKey]) -> AuthenticationError:
        entries = ", ".join(f"{key.kind} {fingerprint(key.blob)} ({key.location})" for key in known)
        return self._refused(
            f"host key mismatch: it sent the {kind} key {fingerprint(blob)}, but {self.name} is known by {entries}. Either "
            "someone is intercepting the connection, or the server was reinstalled; in the latter case remove the entry, or set "
            f'host_key_policy="{fingerprint(blob)}"'
        )

    def _refused(self, reason: str) -> AuthenticationError:
        return AuthenticationError(f"host key refused: {reason}")


def fingerprint(blob: bytes) -> str:
    """The fingerprint of a public key, as from `ssh-keygen -l`."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def entry_name(hostname: str, port: int) -> str:
    """The name of a host in known_hosts (sshd(8))."""
    return hostname.lower() if port == SSH_PORT else f"[{hostname.lower()}]:{port}"


def is_loopback(address: str) -> bool:
    """Whether *address* is in 127.0.0.0/8 or is ::1."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def known_keys(paths: Iterable[str], name: str) -> list[KnownKey]:
    """The lines that match *name*; none for a missing file.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    found: list[KnownKey] = []
    for path in paths:
        try:
            text = Path(expanded(path)).read_text(encoding="utf-8", errors="surrogateescape")
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # If skipped, a changed key would look like a new one.
            raise ConfigurationError(
                f"known_hosts: cannot read it: {error}", parameter="known_hosts"
            ) from error
        found += _matching(text, name, path)
    return found


def remember(path: str, name: str, kind: str, blob: bytes) -> list[KnownKey]:
    """Add a key for *name* to the file *path*, unless *name* has a key there. Creates the file if missing.

    The file is locked and read again, so that only one of several processes adds the key.

    Returns:
        Other keys that *name* has there; if any, nothing was added.

    Raises:
        OSError: the file cannot be written.
    """
    whole = Path(expanded(path))
    whole.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(
        os.open(whole, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", 0
    ) as file:
        with suppress(OSError):  # without locks, as on some network file systems, a line may be added twice
            fcntl.flock(file, fcntl.LOCK_EX)
        before = file.readall()
        known = [
            key
            for key in _matching(before.decode("utf-8", "surrogateescape"), name, path)
            if not key.revoked and not key.authority
        ]
        if any(key.blob == blob for key in known):
            return []
        if known:
            return known
        line = f"{name} {kind} {base64.b64encode(blob).decode()}\n".encode()
        file.write(line if before.endswith(b"\n") or not before else b"\n" + line)
    return []


def _matching(text: str, name: str, path: str) -> Iterator[KnownKey]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else None
        if len(words) < 3 or marker not in {None, "@revoked", _AUTHORITY} or words[0].startswith("#"):
            continue
        if not _names(words[0], name):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except binascii.Error:
            logger.warning("%s:%d: skipped a line whose key is not base64", path, number)
            continue
        yield KnownKey(words[1], blob, marker == "@revoked", f"{path}:{number}", marker == _AUTHORITY)


def _names(patterns: str, name: str) -> bool:
    """Whether the first field of a known_hosts line names the host."""
    if patterns.startswith("|1|"):
        return _is_hash_of(patterns, name)
    found = False
    for pattern in patterns.lower().split(","):
        if _wildcard(pattern.removeprefix("!"), name):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _is_hash_of(hashed: str, name: str) -> bool:
    """HashKnownHosts: "|1|salt|HMAC-SHA1 of the name", both in base64."""
    parts = hashed.split("|")
    if len(parts) != 4:
        return False
    try:
        salt, digest = base64.b64decode(parts[2], validate=True), base64.b64decode(parts[3], validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode("utf-8", "surrogateescape"), "sha1"), digest)


def _wildcard(pattern: str, name: str) -> bool:
    # Not fnmatch, which would take the brackets of "[host]:port" for a character class.
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name) is not None


def _algorithms(kind: str) -> tuple[str, ...]:
    """The signature algorithms of a key type."""
    return (*_RSA_ALGORITHMS, kind) if kind == "ssh-rsa" else (kind,)


def _file_kind(kind: str) -> str:
    """The key type as in the name of sshd's host key file."""
    for part in ("ed25519", "ecdsa", "rsa"):
        if part in kind:
            return part
    return "*"
