"""Authentication: tries the available keys and the password with the methods that the server accepts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from storage_backend.backends.remote.errors import reason_of
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.private_keys import (
    CERTIFICATE,
    PUBLIC,
    KeyAgent,
    SigningKey,
    UnusableKeyError,
    describe_key,
    load_key,
)
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.errors import (
    AuthenticationError,
    ConfigurationError,
    StorageTimeoutError,
    UnavailableError,
)
from storage_backend.paths import expanded

DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
METHODS = ("publickey", "password", "keyboard-interactive")


@dataclass
class Authentication:
    """The `auth_strategy` of `paramiko.SSHClient.connect`, for one connection.

    The first attempt is the method "none", as in OpenSSH: the server accepts it or replies with its methods. Then follow the named
    key files (by the agent, if it holds the key), the agent's other keys, the default key files, and the password. Named keys
    come before the agent's because a server disconnects after a few attempts (MaxAuthTries), and an agent may hold many keys. A
    key or password is tried only if the server accepts its method.

    Args:
        patience: seconds for all attempts together.
        clock: monotonic seconds.
    """

    settings: SSHSettings
    endpoint: Endpoint
    patience: float
    clock: Callable[[], float] = time.monotonic
    _outcomes: list[str] = field(default_factory=list, init=False)  # for messages, without secrets
    _allowed: tuple[str, ...] = field(default=METHODS, init=False)
    _refusals: int = field(default=0, init=False)
    _seen: set[bytes] = field(default_factory=set, init=False)

    def authenticate(self, transport: Any) -> list[str]:
        """Authenticate on *transport*, a negotiated `paramiko.Transport`.

        Returns:
            An empty list: paramiko expects the methods that remain.

        Raises:
            AuthenticationError: the server refused every attempt; the message lists these and the server's methods.
            UnavailableError: the connection ended before any refusal.
            StorageTimeoutError: authentication took longer than `patience`.
        """
        deadline = self.clock() + self.patience
        agent = KeyAgent(self.endpoint.identity_agent)
        try:
            if self._try(transport, deadline, "none", partial(transport.auth_none, self.endpoint.user)):
                return []
            # After a partial success the server may accept other methods: start again, but try each key once.
            while True:
                before = self._allowed
                if self._round(transport, deadline, agent):
                    return []
                if self._allowed == before:
                    methods = ", ".join(self._allowed) or "no method"
                    raise AuthenticationError(
                        f"authentication failed for user {self.endpoint.user!r}: the server accepts {methods}{self._tried()}"
                    )
        finally:
            agent.close()

    def _round(self, transport: Any, deadline: float, agent: KeyAgent) -> bool:
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
        method = next((name for name in ("password", "keyboard-interactive") if name in self._allowed), None)
        if method is None or b"password" in self._seen:
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
        if method == "password":
            return self._try(
                transport,
                deadline,
                "the password",
                partial(_request, transport, "auth_password", user, password),
            )
        answers = _InteractiveAnswers(password)
        done = self._try(
            transport,
            deadline,
            "the password, as the reply to its prompt",
            partial(_request, transport, "auth_interactive", user, answers),
        )
        if answers.unanswered:
            self._outcomes.append(f"it also asked {', '.join(map(repr, answers.unanswered))}")
        return done

    def _try(
        self,
        transport: Any,
        deadline: float,
        label: str,
        attempt: Callable[[], Any],
        key: SigningKey | None = None,
    ) -> bool:
        """Make one attempt; True if we are authenticated."""
        paramiko = ssh_library()
        left = deadline - self.clock()
        if left > 0:
            transport.auth_timeout = left
            try:
                rest = attempt()
            except paramiko.BadAuthenticationType as error:
                self._allowed = tuple(error.allowed_types)
                if label != "none":
                    self._outcomes.append(f"{label}: not accepted here")
            except (paramiko.SSHException, EOFError, OSError) as error:
                self._note(transport, label, error, key, deadline)
            else:
                if not rest:
                    return True
                self._outcomes.append(f"{label}: accepted, but not sufficient")
                self._allowed = tuple(rest)
            return False
        raise StorageTimeoutError(f"authentication took longer than {self.patience:g} s{self._tried()}")

    def _note(
        self, transport: Any, label: str, error: Exception, key: SigningKey | None, deadline: float
    ) -> None:
        """Record a failure; raise if this connection allows no more attempts."""
        if transport.is_active():
            if self.clock() >= deadline:
                raise StorageTimeoutError(
                    f"{label}: no reply; authentication took longer than {self.patience:g} s{self._tried()}"
                ) from error
            if key is not None and key.trouble is not None:
                self._outcomes.append(f"{label}: cannot sign ({key.trouble})")
            elif label != "none":
                self._refusals += 1
                self._outcomes.append(f"{label}: refused")
            return
        if self._refusals:
            raise AuthenticationError(
                f"the server ended the connection at {label}, after refusing {self._refusals} other attempts "
                f"(sshd's MaxAuthTries?){self._tried()}"
            ) from error
        raise UnavailableError(
            f"the connection ended during authentication ({label}): {reason_of(error)}"
        ) from error

    def _tried(self) -> str:
        return f"; tried: {'; '.join(self._outcomes)}" if self._outcomes else ""

    # Keys

    def _keys(self, transport: Any, agent: KeyAgent) -> Iterator[tuple[str, SigningKey]]:
        """The keys not yet tried, the likeliest first; records unusable ones."""
        named = self.settings.key_filename or self.endpoint.key_files
        if self.settings.agent and agent.open() and agent.reason is not None:
            self._outcomes.append(agent.reason)
        for path in named:
            yield from self._file(transport, path, agent, wanted=True)
        if not self.endpoint.identities_only:
            for key in agent.keys:
                yield from self._usable(transport, f"agent key {describe_key(key)}", key)
        if not named:
            if (
                not any(Path(expanded(path)).exists() for path in DEFAULT_KEYS)
                and b"default" not in self._seen
            ):
                self._seen.add(b"default")
                self._outcomes.append(f"no key file {', '.join(DEFAULT_KEYS)}")
            for path in DEFAULT_KEYS:
                yield from self._file(transport, path, agent, wanted=False)

    def _file(
        self, transport: Any, path: str, agent: KeyAgent, *, wanted: bool
    ) -> Iterator[tuple[str, SigningKey]]:
        whole = expanded(path)
        mark = b"file " + os.fsencode(whole)
        if mark in self._seen:
            return
        self._seen.add(mark)
        if not wanted and not os.path.exists(whole):  # noqa: PTH110 - stays text
            return
        held = agent.holding(whole)
        if held is not None:
            yield from self._usable(transport, f"agent key {describe_key(held)} of {path}", held)
            return
        if whole.endswith(PUBLIC) and not whole.endswith(CERTIFICATE):
            # A public key selects a private key, in the agent or in the file next to it.
            whole = whole.removesuffix(PUBLIC)
            if not os.path.exists(whole):  # noqa: PTH110 - stays text
                self._outcomes.append(
                    f"key file {path}: a public key whose private key the agent does not hold"
                )
                return
        try:
            key = load_key(whole, self.settings)
        except UnusableKeyError as error:
            self._outcomes.append(f"key file {path}: {error}")
            return
        yield from self._usable(transport, f"key file {path}", key)

    def _usable(self, transport: Any, label: str, key: Any) -> Iterator[tuple[str, SigningKey]]:
        """*key* with its certificate, then without; skips those already tried, and RSA keys if the server refuses their signatures."""
        certificate = getattr(key, "public_blob", None)
        if "rsa" in key.get_name() and not _rsa_agreed(transport):
            self._outcomes.append(f"{label}: the server accepts no RSA signature with SHA-2")
            return
        blob = bytes(key.asbytes())
        for public in (None,) if certificate is None else (certificate, None):
            mark = blob if public is None else b"certificate " + blob
            if mark not in self._seen:
                self._seen.add(mark)
                yield (
                    f"{label} with its certificate" if public is not None else label,
                    SigningKey(key, public),
                )


def _request(transport: Any, method: str, *arguments: Any) -> Any:
    """Send another authentication request, after `Transport.auth_none`, by *method* of paramiko's handler.

    `Transport.auth_publickey` and its siblings request the service again each time, which makes some servers (asyncssh)
    disconnect, and sign in the transport's thread, which dies if an agent refuses. paramiko.ServiceRequestingTransport sleeps for
    0.1 s and may miss a quick reply.
    """
    base: Any = ssh_library().auth_handler.AuthOnlyHandler
    answered = threading.Event()

    class Handler(base):  # type: ignore[misc]  # paramiko has no types
        @property
        def auth_event(self) -> threading.Event:
            return answered

        @auth_event.setter
        def auth_event(self, event: object) -> None:
            """Ignore paramiko's event: it is set only after the request is sent, when the reply may already have arrived."""

    handler = transport.auth_handler = Handler(transport)
    return getattr(handler, method)(*arguments)


class _InteractiveAnswers:
    """Replies to keyboard-interactive prompts: the password for the first without echo, "" for others.

    Attributes:
        unanswered: the other prompts.
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


def _rsa_agreed(transport: Any) -> bool:
    """Whether the server accepts a signature of an RSA key; without one, paramiko would end the connection."""
    offered = (getattr(transport, "server_extensions", None) or {}).get("server-sig-algs")
    if not offered:
        return True
    names = (offered.decode("ascii", "replace") if isinstance(offered, bytes) else offered).split(",")
    return any("rsa" in name and name in names for name in transport.preferred_pubkeys)
