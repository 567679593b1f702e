"""Private keys from files or an SSH agent."""

from __future__ import annotations

import base64
import io
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from storage_backend.backends.remote.errors import reason_of
from storage_backend.backends.remote.hostkeys import fingerprint
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.settings import SSHSettings
from storage_backend.backends.remote.sftp_packets import Fields
from storage_backend.errors import ConfigurationError
from storage_backend.forks import no_fork
from storage_backend.paths import expanded

AGENT_PATIENCE = 2.0  # seconds to connect to the agent, a process on this machine
PUBLIC = ".pub"
CERTIFICATE = "-cert.pub"
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


class SigningKey:
    """A key for paramiko to sign with, with or without its certificate.

    Attributes:
        trouble: why signing failed; nothing was sent to the server then.
    """

    def __init__(self, key: Any, public_blob: Any) -> None:
        self.public_blob = public_blob
        self.trouble: str | None = None
        self._key = key

    def get_name(self) -> str:
        """The key type, as paramiko names it."""
        return str(self._key.get_name())

    def asbytes(self) -> bytes:
        """The public key, as SSH sends it."""
        return bytes(self._key.asbytes())

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Any:
        """Sign *data*; `trouble` says why that failed."""
        # An agent may wait for its user and does not compute in this process.
        elsewhere = isinstance(self._key, ssh_library().AgentKey)
        try:
            with nullcontext() if elsewhere else no_fork():
                return self._key.sign_ssh_data(data, algorithm)
        except Exception as error:
            self.trouble = reason_of(error)
            raise ssh_library().SSHException(self.trouble) from error


class KeyAgent:
    """A connection to an SSH agent.

    Args:
        address: path of its socket (IdentityAgent); None for SSH_AUTH_SOCK.

    Attributes:
        keys: the keys that it holds.
        reason: why `keys` is empty.
    """

    def __init__(self, address: str | None) -> None:
        self._name = "SSH_AUTH_SOCK" if address is None else "IdentityAgent"
        self._address = os.environ.get("SSH_AUTH_SOCK") if address is None else expanded(address)
        self.keys: Sequence[Any] = ()
        self.reason: str | None = None
        self._listed = False
        self._client: Any = None

    def open(self) -> bool:
        """List the keys, on the first call; returns whether it was the first."""
        first, self._listed = not self._listed, True
        if first:
            self._list_keys()
        return first

    def _list_keys(self) -> None:
        address = self._address
        if not address:
            self.reason = f"no agent: {self._name} is not set"
            return
        paramiko = ssh_library()
        try:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(AGENT_PATIENCE)
                connection.connect(address)
                connection.settimeout(None)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            self.reason = f"no agent at {self._name}={address}: {reason_of(error)}"
            return
        try:
            self._client = paramiko.agent.AgentSSH()
            # paramiko.Agent only connects to SSH_AUTH_SOCK.
            self._client._connect(connection)
            self.keys = tuple(self._client.get_keys())
        except (paramiko.SSHException, OSError) as error:
            self.reason = f"the agent lists no keys: {reason_of(error)}"
        else:
            self.reason = None if self.keys else "the agent holds no keys"

    def holding(self, path: str) -> Any:
        """The agent's key for the key file *path*; None if it does not hold it."""
        public = _public_half(path) if self.keys else None
        return next((key for key in self.keys if key.get_base64() == public), None)

    def close(self) -> None:
        """Disconnect from the agent. Idempotent."""
        client, self._client = self._client, None
        if client is not None:
            client._close()


class UnusableKeyError(Exception):
    """A key file cannot be used."""


def load_key(path: str, settings: SSHSettings) -> Any:
    """The key in the file *path*, a `paramiko.PKey`, with the certificate next to it.

    Raises:
        UnusableKeyError: the file cannot be read or the key is not supported.
    """
    private = path.removesuffix(CERTIFICATE)
    try:
        if not stat.S_ISREG(os.stat(private).st_mode):  # noqa: PTH116 - stays text
            raise UnusableKeyError("not a file")
        data = Path(private).read_bytes()
        with no_fork():
            key = _read(data, settings)
        certificate = f"{private}{CERTIFICATE}"
        if os.path.exists(certificate):  # noqa: PTH110 - stays text
            key.load_certificate(certificate)
    except OSError as error:
        raise UnusableKeyError(reason_of(error)) from None
    except UnusableKeyError:
        raise
    except Exception as error:  # the parsers raise many types
        raise UnusableKeyError(
            f"not a private key, or not a supported one ({reason_of(error)}); `ssh-keygen -p -f` converts one to OpenSSH's format"
        ) from error
    return key


def _read(data: bytes, settings: SSHSettings) -> Any:
    """Parse a private key: OpenSSH's format, PKCS#8, or the PEM of RSA and ECDSA. paramiko cannot read PKCS#8."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    ours = _OPENSSH in data
    load: Any = serialization.load_ssh_private_key if ours else serialization.load_pem_private_key
    try:
        loaded = load(data, None)
    except (TypeError, ValueError) as error:
        # The type depends on the version of cryptography.
        if isinstance(error, ValueError) and "password" not in str(error).lower():
            raise
        if settings.passphrase is None:
            raise UnusableKeyError("encrypted, and no passphrase is set") from None
        try:
            passphrase = settings.passphrase.value().encode()
        except ConfigurationError as error:
            raise UnusableKeyError(str(error)) from None
        try:
            loaded = load(data, passphrase)
        except UnsupportedAlgorithm as error:
            raise UnusableKeyError(f"encrypted with an unsupported method: {reason_of(error)}") from None
        except ValueError:
            raise UnusableKeyError("wrong passphrase") from None
    paramiko = ssh_library()
    kinds = (
        (rsa.RSAPrivateKey, paramiko.RSAKey),
        (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
        (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
    )
    for kind, theirs in kinds:
        if isinstance(loaded, kind):
            text = loaded.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
            )
            return theirs.from_private_key(io.StringIO(text.decode()))
    raise UnusableKeyError(
        f"a {type(loaded).__name__.removesuffix('PrivateKey')} key, which is not supported"
    )


def _public_half(path: str) -> str | None:
    """The public key of a key file, in base64: from *path* if it is public, NAME.pub, or the unencrypted part of a private key."""
    beside = path if path.endswith(PUBLIC) else f"{path}{PUBLIC}"
    if path.endswith(CERTIFICATE):
        beside = f"{path.removesuffix(CERTIFICATE)}{PUBLIC}"
    with suppress(OSError, ValueError, IndexError):
        return Path(beside).read_text(encoding="utf-8").split()[1]
    with suppress(OSError, ValueError, IndexError):
        # The public key is not encrypted (OpenSSH's PROTOCOL.key).
        lines = Path(path).read_bytes().strip().splitlines()
        if _OPENSSH in lines[0]:
            fields = Fields(base64.b64decode(b"".join(lines[1:-1])).removeprefix(b"openssh-key-v1\0"))
            for _ in range(3):
                fields.string()
            fields.number()
            return base64.b64encode(fields.string()).decode()
    return None


def describe_key(key: Any) -> str:
    """The fingerprint and comment of a key, for messages."""
    comment = getattr(key, "comment", "")
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", "replace")
    return f"{fingerprint(bytes(key.asbytes()))}{f' ({comment})' if comment else ''}"
