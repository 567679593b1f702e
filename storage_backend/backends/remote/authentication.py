"""Authentication: proving to a server who the user is, by what it takes and what there is."""

from __future__ import annotations

import base64
import io
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from storage_backend.backends.remote.hostkeys import fingerprint
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.packets import Fields
from storage_backend.backends.remote.settings import Endpoint, Settings
from storage_backend.errors import (
    AuthenticationError,
    ConfigurationError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.forks import no_fork
from storage_backend.paths import expanded

DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
AGENT_PATIENCE = 2.0  # seconds to connect to the agent, which is a program on this machine
METHODS = ("publickey", "password", "keyboard-interactive")

_PUBLIC = ".pub"
_CERTIFICATE = "-cert.pub"
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


@dataclass
class Authentication:
    """What `paramiko.SSHClient.connect` is given as `auth_strategy`, for one connection.

    Begins with the method "none", as OpenSSH does: a server that asks for nothing is content, and another says what it
    takes. Then come the key files that were named (as the agent's key, where it holds it), the agent's other keys, the
    usual key files, and the password. Keys that the caller named come before those of the agent since a server ends the
    connection after a few tries (MaxAuthTries), and an agent may hold many. Each is tried only where the server takes
    its method.

    Args:
        patience: seconds for all of it.
        clock: monotonic seconds.
    """

    settings: Settings
    endpoint: Endpoint
    patience: float
    clock: Callable[[], float] = time.monotonic
    _outcomes: list[str] = field(default_factory=list, init=False)  # in words, without secrets
    _allowed: tuple[str, ...] = field(default=METHODS, init=False)
    _refusals: int = field(default=0, init=False)
    _seen: set[bytes] = field(default_factory=set, init=False)

    def authenticate(self, transport: Any) -> list[str]:
        """Log in on *transport*, a negotiated `paramiko.Transport`.

        Returns:
            nothing in it: the methods that are left to do.

        Raises:
            AuthenticationError: the server takes nothing of what there is. Tells what was tried, and what it takes.
            UnavailableError: the connection ended before anything was refused.
            StorageTimeoutError: it took longer than `patience`.
        """
        deadline = self.clock() + self.patience
        agent = _Agent(self.endpoint.identity_agent)
        try:
            if self._try(transport, deadline, "none", partial(transport.auth_none, self.endpoint.user)):
                return []
            # After a partial success what was passed over may be wanted: once more from the start, each key once.
            while True:
                before = self._allowed
                if self._round(transport, deadline, agent):
                    return []
                if self._allowed == before:
                    raise self._failed()
        finally:
            agent.close()

    def _round(self, transport: Any, deadline: float, agent: _Agent) -> bool:
        user = self.endpoint.user
        if "publickey" in self._allowed:
            before = self._allowed
            for label, key in self._keys(transport, agent):
                if self._try(
                    transport, deadline, label, partial(_request, transport, "auth_publickey", user, key), key
                ):
                    return True
                if self._allowed != before:
                    return False
        return self._password(transport, deadline)

    def _password(self, transport: Any, deadline: float) -> bool:
        user = self.endpoint.user
        way = next((name for name in ("password", "keyboard-interactive") if name in self._allowed), None)
        if way is None or b"password" in self._seen:
            return False
        self._seen.add(b"password")
        if self.settings.password is None:
            self._outcomes.append("no password is set")
            return False
        try:
            password = self.settings.password.value()
        except ConfigurationError as error:
            self._outcomes.append(str(error))
            return False
        if way == "password":
            return self._try(
                transport,
                deadline,
                "the password",
                partial(_request, transport, "auth_password", user, password),
            )
        answers = _Answers(password)
        done = self._try(
            transport,
            deadline,
            "the password, as the answer to its question",
            partial(_request, transport, "auth_interactive", user, answers),
        )
        if answers.unanswered:
            self._outcomes.append(f"it also asked {', '.join(map(repr, answers.unanswered))}")
        return done

    def _try(
        self, transport: Any, deadline: float, label: str, attempt: Callable[[], Any], key: _Key | None = None
    ) -> bool:
        """Make one attempt; whether it was the last one needed."""
        paramiko = ssh_library()
        left = deadline - self.clock()
        if left > 0:
            transport.auth_timeout = left
            try:
                rest = attempt()
            except paramiko.BadAuthenticationType as error:
                self._allowed = tuple(error.allowed_types)
                if label != "none":
                    self._outcomes.append(f"{label}: not taken here")
            except (paramiko.SSHException, EOFError, OSError) as error:
                self._note(transport, label, error, key, deadline)
            else:
                if not rest:
                    return True
                self._outcomes.append(f"{label}: accepted, but not enough by itself")
                self._allowed = tuple(rest)
            return False
        raise StorageTimeoutError(f"authentication took longer than {self.patience:g} s{self._tried()}")

    def _note(self, transport: Any, label: str, error: Exception, key: _Key | None, deadline: float) -> None:
        """Note a failure, and raise if nothing more can be tried on this connection."""
        if transport.is_active():
            if self.clock() >= deadline:
                raise StorageTimeoutError(
                    f"{label}: no answer; authentication took longer than {self.patience:g} s{self._tried()}"
                ) from error
            if key is not None and key.trouble is not None:
                self._outcomes.append(f"{label}: cannot sign ({key.trouble})")
            elif label != "none":
                self._refusals += 1
                self._outcomes.append(f"{label}: refused")
            return
        if self._refusals:
            raise AuthenticationError(
                f"the server ended the connection at {label}, after {self._refusals} other tries that it refused "
                f"(MaxAuthTries of sshd?){self._tried()}"
            ) from error
        raise UnavailableError(
            f"the connection ended during authentication ({label}): {_words(error)}"
        ) from error

    def _failed(self) -> AuthenticationError:
        return AuthenticationError(
            f"authentication failed for user {self.endpoint.user!r}: the server takes {', '.join(self._allowed) or 'no method'}"
            f"{self._tried()}"
        )

    def _tried(self) -> str:
        return f"; tried: {'; '.join(self._outcomes)}" if self._outcomes else ""

    # Keys

    def _keys(self, transport: Any, agent: _Agent) -> Iterator[tuple[str, _Key]]:
        """The keys that have not been tried, the most likely first; what cannot be used is noted."""
        named = self.settings.key_filename or self.endpoint.key_files
        if self.settings.agent and agent.open() and agent.reason is not None:
            self._outcomes.append(agent.reason)
        for path in named:
            yield from self._file(transport, path, agent, wanted=True)
        if not self.endpoint.identities_only:
            for key in agent.keys:
                yield from self._usable(transport, f"agent key {_shown(key)}", key)
        if not named:
            if (
                not any(Path(expanded(path)).exists() for path in DEFAULT_KEYS)
                and b"default" not in self._seen
            ):
                self._seen.add(b"default")
                self._outcomes.append(f"no key file {', '.join(DEFAULT_KEYS)}")
            for path in DEFAULT_KEYS:
                yield from self._file(transport, path, agent, wanted=False)

    def _file(self, transport: Any, path: str, agent: _Agent, *, wanted: bool) -> Iterator[tuple[str, _Key]]:
        whole = expanded(path)
        mark = b"file " + os.fsencode(whole)
        if mark in self._seen:
            return
        self._seen.add(mark)
        if not wanted and not os.path.exists(whole):  # noqa: PTH110 - stays text
            return
        held = agent.holding(whole)
        if held is not None:
            yield from self._usable(transport, f"agent key {_shown(held)} of {path}", held)
            return
        if whole.endswith(_PUBLIC) and not whole.endswith(_CERTIFICATE):
            # The public half says which key is meant; the other half is the agent's, or lies beside it.
            whole = whole.removesuffix(_PUBLIC)
            if not os.path.exists(whole):  # noqa: PTH110 - stays text
                self._outcomes.append(
                    f"key file {path}: a public key, and the agent does not hold its private half"
                )
                return
        try:
            key = _load(whole, self.settings)
        except _UnusableKeyError as error:
            self._outcomes.append(f"key file {path}: {error}")
            return
        yield from self._usable(transport, f"key file {path}", key)

    def _usable(self, transport: Any, label: str, key: Any) -> Iterator[tuple[str, _Key]]:
        """*key* with its certificate, then without; nothing of it if it was tried before or the server cannot read it."""
        certificate = getattr(key, "public_blob", None)
        if "rsa" in key.get_name() and not _rsa_agreed(transport):
            self._outcomes.append(f"{label}: the server takes no RSA signature with SHA-2")
            return
        blob = bytes(key.asbytes())
        for public in (None,) if certificate is None else (certificate, None):
            mark = blob if public is None else b"certificate " + blob
            if mark not in self._seen:
                self._seen.add(mark)
                yield f"{label} with its certificate" if public is not None else label, _Key(key, public)


def _request(transport: Any, method: str, *arguments: Any) -> Any:
    """Make one more request to log in, after `Transport.auth_none`, as *method* of paramiko's handler.

    Not `Transport.auth_publickey` and the like: these ask for the service anew each time, upon which some servers end the
    connection (asyncssh's), and sign in the transport's thread, where an agent's refusal ends it. Nor
    paramiko.ServiceRequestingTransport: it sleeps for a tenth of a second and may miss a quick answer.
    """
    base: Any = ssh_library().auth_handler.AuthOnlyHandler
    answered = threading.Event()

    class Handler(base):  # type: ignore[misc]  # paramiko has no types
        @property
        def auth_event(self) -> threading.Event:
            return answered

        @auth_event.setter
        def auth_event(self, event: object) -> None:
            """Paramiko sets one after it has sent the request, when the answer may have been there already."""

    handler = transport.auth_handler = Handler(transport)
    return getattr(handler, method)(*arguments)


class _Key:
    """A key as paramiko signs with it, with or without its certificate.

    Attributes:
        trouble: why it could not sign; then the server was sent nothing.
    """

    def __init__(self, key: Any, public_blob: Any) -> None:
        self.public_blob = public_blob
        self.trouble: str | None = None
        self._key = key

    def get_name(self) -> str:
        return str(self._key.get_name())

    def asbytes(self) -> bytes:
        return bytes(self._key.asbytes())

    def sign_ssh_data(self, data: bytes, algorithm: str | None = None) -> Any:
        # An agent may ask its user first, and computes elsewhere.
        elsewhere = isinstance(self._key, ssh_library().AgentKey)
        try:
            with nullcontext() if elsewhere else no_fork():
                return self._key.sign_ssh_data(data, algorithm)
        except Exception as error:
            self.trouble = _words(error)
            raise ssh_library().SSHException(self.trouble) from error


class _Agent:
    """An SSH agent, asked once.

    Args:
        place: IdentityAgent: its socket; None for SSH_AUTH_SOCK.

    Attributes:
        keys: that it holds.
        reason: why there are none.
    """

    def __init__(self, place: str | None) -> None:
        self._name = "SSH_AUTH_SOCK" if place is None else "IdentityAgent"
        self._place = os.environ.get("SSH_AUTH_SOCK") if place is None else expanded(place)
        self.keys: Sequence[Any] = ()
        self.reason: str | None = None
        self._asked = False
        self._client: Any = None

    def open(self) -> bool:
        """Ask it for its keys; whether this is the first time."""
        first, self._asked = not self._asked, True
        if first:
            self._ask()
        return first

    def _ask(self) -> None:
        place = self._place
        if not place:
            self.reason = f"no agent: {self._name} is not set"
            return
        paramiko = ssh_library()
        try:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(AGENT_PATIENCE)
                connection.connect(place)
                connection.settimeout(None)
            except BaseException:
                connection.close()
                raise
        except OSError as error:
            self.reason = f"no agent at {self._name}={place}: {error.strerror or error}"
            return
        try:
            self._client = paramiko.agent.AgentSSH()
            # paramiko.Agent knows but the one at SSH_AUTH_SOCK.
            self._client._connect(connection)
            self.keys = tuple(self._client.get_keys())
        except (paramiko.SSHException, OSError) as error:
            self.reason = f"the agent gives no keys: {_words(error)}"
        else:
            self.reason = None if self.keys else "the agent holds no keys"

    def holding(self, path: str) -> Any:
        """Its key whose public half *path* is or has beside it or within; None if there is none."""
        public = _public_half(path) if self.keys else None
        return next((key for key in self.keys if key.get_base64() == public), None)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client._close()


class _Answers:
    """Answers a server's questions: the first that is not to be shown with the password, others with nothing.

    Attributes:
        unanswered: the other questions.
    """

    def __init__(self, password: str) -> None:
        self.unanswered: list[str] = []
        self._password: str | None = password

    def __call__(self, title: str, instructions: str, questions: Sequence[tuple[str, bool]]) -> list[str]:  # noqa: ARG002 - paramiko's interface
        answers = []
        for question, shown in questions:
            if self._password is not None and not shown:
                answers.append(self._password)
                self._password = None
            else:
                self.unanswered.append(question.strip())
                answers.append("")
        return answers


class _UnusableKeyError(Exception):
    """A key file gives no key."""


def _load(path: str, settings: Settings) -> Any:
    """The key in the file *path*, a `paramiko.PKey`, with the certificate beside it."""
    private = path.removesuffix(_CERTIFICATE)
    try:
        if not stat.S_ISREG(os.stat(private).st_mode):  # noqa: PTH116 - stays text
            raise _UnusableKeyError("not a file")
        data = Path(private).read_bytes()
        with no_fork():
            key = _read(data, settings)
        certificate = f"{private}{_CERTIFICATE}"
        if os.path.exists(certificate):  # noqa: PTH110 - stays text
            key.load_certificate(certificate)
    except OSError as error:
        raise _UnusableKeyError(error.strerror or str(error)) from None
    except _UnusableKeyError:
        raise
    except Exception as error:  # parsers of foreign formats raise many kinds
        raise _UnusableKeyError(
            f"not a private key that can be used here ({_words(error)}); `ssh-keygen -p -f` rewrites one in OpenSSH's format"
        ) from error
    return key


def _read(data: bytes, settings: Settings) -> Any:
    """The key that *data* is: OpenSSH's format, PKCS#8 or a kind's own PEM. paramiko reads of these but the first and the last."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    ours = _OPENSSH in data
    load: Any = serialization.load_ssh_private_key if ours else serialization.load_pem_private_key
    try:
        loaded = load(data, None)
    except (TypeError, ValueError) as error:
        # Older versions of cryptography say either.
        if isinstance(error, ValueError) and "password" not in str(error).lower():
            raise
        if settings.passphrase is None:
            raise _UnusableKeyError("encrypted, and no passphrase is set") from None
        try:
            passphrase = settings.passphrase.value().encode()
        except ConfigurationError as error:
            raise _UnusableKeyError(str(error)) from None
        try:
            loaded = load(data, passphrase)
        except UnsupportedAlgorithm as error:
            raise _UnusableKeyError(f"encrypted in a way that is not known here: {_words(error)}") from None
        except ValueError:
            raise _UnusableKeyError("the passphrase does not open it") from None
    paramiko = ssh_library()
    kinds = (
        (rsa.RSAPrivateKey, paramiko.RSAKey),
        (ec.EllipticCurvePrivateKey, paramiko.ECDSAKey),
        (ed25519.Ed25519PrivateKey, paramiko.Ed25519Key),
    )
    for kind, theirs in kinds:
        if isinstance(loaded, kind):
            text = loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
            return theirs.from_private_key(io.StringIO(text.decode()))
    raise _UnusableKeyError(
        f"a {type(loaded).__name__.removesuffix('PrivateKey')} key, which is not supported"
    )


def _public_half(path: str) -> str | None:
    """The public key that belongs to a key file, in base64: from the file itself, if it is one, or beside it, or within it."""
    beside = path if path.endswith(_PUBLIC) else f"{path}{_PUBLIC}"
    if path.endswith(_CERTIFICATE):
        beside = f"{path.removesuffix(_CERTIFICATE)}{_PUBLIC}"
    with suppress(OSError, ValueError, IndexError):
        return Path(beside).read_text(encoding="utf-8").split()[1]
    with suppress(OSError, ValueError, IndexError):
        # PROTOCOL.key of OpenSSH: it is not encrypted.
        lines = Path(path).read_bytes().strip().splitlines()
        if _OPENSSH in lines[0]:
            fields = Fields(base64.b64decode(b"".join(lines[1:-1])).removeprefix(b"openssh-key-v1\0"))
            for _ in range(3):
                fields.string()
            fields.number()
            return base64.b64encode(fields.string()).decode()
    return None


def _rsa_agreed(transport: Any) -> bool:
    """Whether an RSA key can be used; paramiko would end the connection otherwise."""
    offered = (getattr(transport, "server_extensions", None) or {}).get("server-sig-algs")
    if not offered:
        return True
    names = (offered.decode("ascii", "replace") if isinstance(offered, bytes) else offered).split(",")
    return any("rsa" in name and name in names for name in transport.preferred_pubkeys)


def _shown(key: Any) -> str:
    comment = getattr(key, "comment", "")
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", "replace")
    return f"{fingerprint(bytes(key.asbytes()))}{f' ({comment})' if comment else ''}"


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
