"""Connecting: endpoints that refuse, hang or are silent, host keys, every way to log in, jumps, and that nothing is left behind."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from paramiko.common import AUTH_FAILED, AUTH_PARTIALLY_SUCCESSFUL, AUTH_SUCCESSFUL
from typing_extensions import override

from storage_backend import AuthenticationError, ConfigurationError, MissingClientError, NoEndpointError
from storage_backend.backends.remote.dialing import Dialed, dial
from storage_backend.backends.remote.paramiko_transport import CIPHER, DialTimeouts
from storage_backend.backends.remote.settings import read_settings
from storage_backend.errors import is_retryable
from tests.conftest import unavailable
from tests.servers import PATIENCE, ServerUnavailableError, program
from tests.ssh_proxy import BlackHole, Proxy
from tests.ssh_servers import OpenSSH, SSHPlace, make_key
from tests.tiers import few

WHERE = "ssh://ann@nas/~"
QUICK = DialTimeouts(connect=2.0, banner=0.3, negotiation=2.0, authentication=2.0)
LONG = 3600.0  # a stagger that no test waits for


def wait_for(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing of the user's keys and agent; and no thread is left behind."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    before = set(threading.enumerate())
    yield
    wait_for(lambda: set(threading.enumerate()) <= before)
    gc.collect()  # an unclosed socket is a warning, which is an error


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Connect = Callable[..., Dialed[Any]]


@pytest.fixture
def connect(stack: ExitStack) -> Connect:
    """Dials, and closes afterwards what it gave."""

    def connect(config: dict[str, Any], check: Callable[..., Any] = greet, **how: Any) -> Dialed[Any]:
        found = dial(read_settings(config), check, where=WHERE, **how)
        stack.callback(found.close)
        return found

    return connect


@pytest.fixture
def refused(connect: Connect) -> Callable[..., NoEndpointError]:
    def refused(config: dict[str, Any], **how: Any) -> NoEndpointError:
        with pytest.raises(NoEndpointError) as raised:
            connect(config, **how)
        again = pickle.loads(pickle.dumps(raised.value))
        assert (type(again), str(again)) == (type(raised.value), str(raised.value))
        return raised.value

    return refused


def greet(client: Any, endpoint: object) -> bytes:
    _, out, _ = client.exec_command("echo hello")
    return bytes(out.read())


def dial_and_close(config: dict[str, Any]) -> Any:
    found = dial(read_settings(config), greet, where=WHERE)
    found.close()
    return found.found


def nothing(client: Any, endpoint: object) -> None:
    """A check that is content."""


def yes(method: str, what: str) -> int:
    return int(AUTH_SUCCESSFUL)


def no(method: str, what: str) -> int:
    return int(AUTH_FAILED)


def any_way(tries: object) -> str:
    return "publickey,password"


def always(methods: str) -> Callable[[object], str]:
    return lambda _tries: methods


class Door:
    """A server of paramiko's that notes who knocks: each try to log in, in order.

    Args:
        answer: what it says to (method, the key's or password's text).
        methods: that it takes, for each of the tries so far.
    """

    def __init__(
        self,
        host_key: Path | str,
        answer: Callable[[str, str], int] = no,
        methods: Callable[[list[tuple[str, str]]], str] = any_way,
    ) -> None:
        self.answer = answer
        self.methods = methods
        self.tries: list[tuple[str, str]] = []
        self.connections = 0
        self.questions = [("Password: ", False)]
        self._key = paramiko.PKey.from_path(host_key)
        self._transports: list[paramiko.Transport] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        for transport in self._transports:
            transport.close()
            transport.packetizer.complete_handshake()  # its timer is a thread

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "user": "ann",
            "endpoints": [["127.0.0.1", self.port]],
            "known_hosts": [],
            "agent": False,
            "connection_timeout": 20.0,
            **more,
        }

    def all_gone(self) -> bool:
        return not any(transport.is_active() for transport in self._transports)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            transport = paramiko.Transport(connection)
            transport.add_server_key(self._key)
            self._transports.append(transport)
            with suppress(paramiko.SSHException, EOFError):
                transport.start_server(event=threading.Event(), server=Knock(self))


class Knock(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    def __init__(self, door: Door) -> None:
        self._door = door

    def _say(self, method: str, what: str) -> int:
        self._door.tries.append((method, what))
        return int(self._door.answer(method, what))

    @override
    def get_allowed_auths(self, username: str) -> str:
        return self._door.methods(self._door.tries)

    @override
    def check_auth_none(self, username: str) -> int:
        return self._say("none", "")

    @override
    def check_auth_password(self, username: str, password: str) -> int:
        return self._say("password", password)

    @override
    def check_auth_publickey(self, username: str, key: Any) -> int:
        return self._say("publickey", key.get_base64())

    @override
    def check_auth_interactive(self, username: str, submethods: str) -> Any:
        return paramiko.InteractiveQuery("", "", *self._door.questions)

    @override
    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return self._say("keyboard-interactive", "|".join(responses))


@pytest.fixture
def door(stack: ExitStack, tmp_path: Path) -> Callable[..., Door]:
    def door(*arguments: Any, kind: str = "ed25519", **options: Any) -> Door:
        made = Door(make_key(tmp_path, kind), *arguments, **options)
        stack.callback(made.close)
        return made

    return door


@pytest.fixture
def sshd(stack: ExitStack) -> Callable[..., OpenSSH]:
    def sshd(*extra: str, **options: Any) -> OpenSSH:
        try:
            server = OpenSSH(extra=extra, **options)
        except ServerUnavailableError as error:
            unavailable(str(error))
        stack.callback(server.stop)
        return server

    return sshd


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes connections, in the kernel, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def public(path: Path | str) -> str:
    return Path(f"{path}.pub").read_text().split()[1]


# One endpoint


def test_connection_works_and_is_the_fast_one(openssh_place: SSHPlace, connect: Connect) -> None:
    found = connect(openssh_place.config(keepalive=5, io_timeout=7))
    assert found.found == b"hello\n"
    assert (found.endpoint.host, found.endpoint.port) == (openssh_place.host, openssh_place.port)
    transport = found.client.get_transport()
    if CIPHER in transport.get_security_options().ciphers:  # paramiko 3.4 does not have it
        assert transport.local_cipher == transport.remote_cipher == CIPHER
    assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert transport.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert transport.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
    found.close()
    found.close()
    assert not transport.is_active()


def test_other_servers_let_us_in(
    asyncssh_place: SSHPlace, rclone_sftp_place: SSHPlace, connect: Connect
) -> None:
    for place in (asyncssh_place, rclone_sftp_place):
        assert connect(place.config(), check=nothing).client.get_transport().is_authenticated()


def test_refused_connection_says_so(refused: Callable[..., NoEndpointError], listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    listener.close()
    error = refused({"user": "ann", "endpoints": [["127.0.0.1", port]]})
    assert str(error) == f"{WHERE}: no endpoint works: 127.0.0.1:{port}: Connection refused"
    assert (error.backend, is_retryable(error)) == (WHERE, True)
    assert not isinstance(error, AuthenticationError)


def test_silent_server_is_given_up(refused: Callable[..., NoEndpointError], listener: socket.socket) -> None:
    error = refused({"user": "ann", "endpoints": [listener.getsockname()]}, limits=QUICK)
    assert "sent nothing within 0.3 s" in str(error)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"", "without sending anything"),
        (b"220 mail\r\n", "protocol"),
        (b"SSH-2.0-x\r\n", "closed the connection during"),
    ],
)
def test_no_ssh_server_is_told(
    refused: Callable[..., NoEndpointError],
    listener: socket.socket,
    words: bytes,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def speak() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(words)
            connection.shutdown(socket.SHUT_WR)
            with suppress(OSError):
                while connection.recv(4096):
                    pass

    thread = threading.Thread(target=speak)
    thread.start()
    assert reason in str(refused({"user": "ann", "endpoints": [listener.getsockname()]}))
    thread.join()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_server_that_hangs_in_key_exchange_is_given_up(
    refused: Callable[..., NoEndpointError], listener: socket.socket, stack: ExitStack
) -> None:
    def speak() -> None:
        connection, _ = listener.accept()
        stack.callback(connection.close)
        connection.sendall(b"SSH-2.0-x\r\n")

    thread = threading.Thread(target=speak)
    thread.start()
    error = refused(
        {"user": "ann", "endpoints": [listener.getsockname()]},
        limits=replace(QUICK, banner=60.0, negotiation=0.2),
    )
    assert "no key exchange within 0.2 s" in str(error)
    thread.join()


def test_failure_prints_nothing_by_itself(listener: socket.socket) -> None:
    program = (
        "import sys\n"
        "from storage_backend.backends.remote.dialing import dial\n"
        "from storage_backend.backends.remote.settings import read_settings\n"
        "settings = read_settings({'user': 'ann', 'endpoints': [['127.0.0.1', int(sys.argv[1])]]})\n"
        "try: dial(settings, lambda *_: None, where='here')\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    port = str(listener.getsockname()[1])
    with subprocess.Popen(
        [sys.executable, "-c", program, port], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"SSH-1.5-old\r\n")
            connection.shutdown(socket.SHUT_WR)
            out, errors = child.communicate()
    assert (out, errors) == ("NoEndpointError\n", "")


def test_without_paramiko_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(MissingClientError, match=r"pip install paramiko$"):
        dial(read_settings({"user": "ann", "endpoints": [["nas", 22]]}), nothing, where=WHERE)


# Several endpoints


def test_next_endpoint_is_used_when_the_first_refuses(
    openssh_place: SSHPlace, connect: Connect, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    first = listener.getsockname()
    listener.close()
    found = connect(
        openssh_place.config(endpoints=[first, [openssh_place.host, openssh_place.port]]), stagger=LONG
    )
    assert found.endpoint.port == openssh_place.port
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert f"127.0.0.1:{first[1]} does not work: Connection refused" in record.getMessage()


def test_next_endpoint_is_used_when_the_first_is_silent(
    openssh_place: SSHPlace, connect: Connect, listener: socket.socket
) -> None:
    endpoints = [listener.getsockname(), [openssh_place.host, openssh_place.port]]
    assert connect(openssh_place.config(endpoints=endpoints)).endpoint.port == openssh_place.port
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(PATIENCE)
        assert connection.recv(100) == b""  # given up, and closed


@pytest.mark.soak
def test_next_endpoint_is_used_when_packets_are_dropped(openssh_place: SSHPlace, connect: Connect) -> None:
    try:
        hole = BlackHole()
    except ServerUnavailableError as error:
        unavailable(str(error))
    with hole:
        endpoints = [[hole.host, hole.port], [openssh_place.host, openssh_place.port]]
        config = openssh_place.config(endpoints=endpoints, connection_timeout=2.0)
        assert connect(config).endpoint.port == openssh_place.port


def test_next_endpoint_is_used_when_the_first_rejects_our_key(
    openssh_place: SSHPlace, connect: Connect, door: Callable[..., Door]
) -> None:
    first = door()
    config = openssh_place.config(
        endpoints=[["127.0.0.1", first.port], [openssh_place.host, openssh_place.port]]
    )
    assert connect(config, stagger=LONG).endpoint.port == openssh_place.port
    assert first.tries == [("none", ""), ("publickey", public(openssh_place.key_filename))]


def test_next_endpoint_is_used_when_the_check_fails(
    openssh_place: SSHPlace, asyncssh_place: SSHPlace, connect: Connect
) -> None:
    threads = []

    def check(client: Any, endpoint: Any) -> str:
        threads.append(threading.current_thread())
        if endpoint.port == openssh_place.port:
            raise OSError("no such directory")
        return "fine"

    key = asyncssh_place.key_filename
    config = openssh_place.config(
        endpoints=[[openssh_place.host, openssh_place.port], [asyncssh_place.host, asyncssh_place.port]],
        key_filename=[openssh_place.key_filename, key],
        known_hosts=[openssh_place.known_hosts, asyncssh_place.known_hosts],
    )
    found = connect(config, check=check, stagger=LONG)
    assert (found.found, found.endpoint.port) == ("fine", asyncssh_place.port)
    assert threading.current_thread() not in threads


def test_endpoint_with_a_banner_is_waited_for(
    door: Callable[..., Door], connect: Connect, listener: socket.socket
) -> None:
    """However slow it is from then on: the clock is past the next one's turn once the server is asked who we are."""
    late = 0.0

    def answer(method: str, what: str) -> int:
        nonlocal late
        late = 10.0
        return int(AUTH_SUCCESSFUL)

    slow = door(answer)
    listener.settimeout(0)
    found = connect(
        slow.config(endpoints=[["127.0.0.1", slow.port], listener.getsockname()]),
        check=nothing,
        stagger=5.0,
        clock=lambda: time.monotonic() + late,
    )
    assert found.endpoint.port == slow.port
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_other_endpoints_may_be_given(
    openssh_place: SSHPlace, connect: Connect, listener: socket.socket
) -> None:
    config = openssh_place.config(
        endpoints=[listener.getsockname(), [openssh_place.host, openssh_place.port]]
    )
    endpoints = read_settings(config).endpoints[1:]
    assert connect(config, endpoints=endpoints).endpoint == endpoints[0]


def test_each_endpoint_has_its_own_reason(
    refused: Callable[..., NoEndpointError], door: Callable[..., Door], listener: socket.socket
) -> None:
    gone = listener.getsockname()
    listener.close()
    first = door()
    error = refused(first.config(endpoints=[["127.0.0.1", first.port], gone, ["no-such-host.invalid", 22]]))
    words = str(error)
    assert f"127.0.0.1:{first.port}: authentication failed" in words
    assert f"127.0.0.1:{gone[1]}: Connection refused" in words
    assert "no-such-host.invalid:22: " in words
    assert words.index(f":{first.port}") < words.index(f":{gone[1]}") < words.index("no-such-host")
    assert not isinstance(error, AuthenticationError)
    assert isinstance(error.__cause__, AuthenticationError)


def test_refusal_everywhere_is_an_authentication_error(
    refused: Callable[..., NoEndpointError], door: Callable[..., Door]
) -> None:
    doors = [door(), door()]
    error = refused(doors[0].config(endpoints=[["127.0.0.1", each.port] for each in doors]))
    assert isinstance(error, AuthenticationError)
    assert isinstance(error, PermissionError)
    assert isinstance(error, ConnectionError)
    assert not is_retryable(error)


@pytest.mark.soak
def test_late_connection_is_closed(
    door: Callable[..., Door], connect: Connect, openssh_place: SSHPlace
) -> None:
    """One that works after another has won."""
    late = door(yes)
    won = threading.Event()

    def check(client: Any, endpoint: Any) -> str:
        if endpoint.port == late.port:
            assert won.wait(PATIENCE)
        return str(endpoint.port)

    with Proxy("127.0.0.1", late.port, delay=1.0) as proxy:
        config = openssh_place.config(
            endpoints=[[proxy.host, proxy.port], [openssh_place.host, openssh_place.port]],
            known_hosts=[],
        )
        found = connect(config, check=check, stagger=0.0)
        won.set()
        assert found.found == str(openssh_place.port)
        wait_for(late.all_gone)


def test_interrupt_leaves_nothing_behind(door: Callable[..., Door]) -> None:
    slow = door(yes)
    go_on = threading.Event()

    def check(client: Any, endpoint: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(PATIENCE)

    with pytest.raises(KeyboardInterrupt):
        dial(read_settings(slow.config()), check, where=WHERE)
    go_on.set()
    wait_for(slow.all_gone)


# Host keys


def test_nothing_is_sent_to_a_host_whose_key_is_refused(
    door: Callable[..., Door], refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    wrong = door(yes)
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{wrong.port} ssh-ed25519 {public(make_key(tmp_path))}\n")
    for changes in ({"known_hosts": known}, {"host_key_policy": "SHA256:" + "A" * 43}):
        error = refused(wrong.config(password="open sesame", **changes))
        assert isinstance(error, AuthenticationError)
        assert "host key refused" in str(error)
    assert wrong.tries == []
    assert wrong.connections > 1


def test_key_of_a_known_kind_is_asked_for(
    sshd: Callable[..., OpenSSH], connect: Connect, tmp_path: Path
) -> None:
    kinds = ("ed25519", "ecdsa", "rsa")
    keys = [make_key(tmp_path, kind) for kind in kinds]
    server = sshd(host_keys=keys)
    lines = Path(server.known_hosts).read_text().splitlines(keepends=True)
    with server.place() as place:
        for key, line in zip(keys, lines, strict=True):
            (tmp_path / "known").write_text(line)
            pin = paramiko.PKey.from_path(key).fingerprint
            for changes in ({"known_hosts": tmp_path / "known"}, {"host_key_policy": pin}):
                found = connect(place.config(**changes))
                assert found.client.get_transport().get_remote_server_key().fingerprint == pin


def test_server_without_the_known_kind_is_refused(
    openssh_place: SSHPlace, refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    (tmp_path / "known").write_text(
        f"[127.0.0.1]:{openssh_place.port} ssh-rsa {public(make_key(tmp_path, 'rsa'))}\n"
    )
    assert "host key mismatch" in str(refused(openssh_place.config(known_hosts=tmp_path / "known")))


def test_new_key_is_remembered(openssh_place: SSHPlace, connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / ".ssh/known_hosts"
    connect(openssh_place.config(known_hosts=path, host_key_policy="accept-new"))
    assert path.read_text() == Path(openssh_place.known_hosts).read_text()


def test_this_machine_needs_no_entry(
    openssh_place: SSHPlace, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connect(openssh_place.config(known_hosts=[]))
    (record,) = (each for each in caplog.records if each.levelno == logging.WARNING)
    assert "accepted the unknown host key SHA256:" in record.getMessage()


# Logging in


def test_server_that_asks_for_nothing_is_told_nothing(door: Callable[..., Door], connect: Connect) -> None:
    opened = door(yes)
    connect(opened.config(password="open sesame"), check=nothing)
    assert opened.tries == [("none", "")]


@pytest.mark.parametrize("kind", few(["ed25519", "ecdsa", "rsa"], 1))
def test_each_kind_of_key_opens(
    sshd: Callable[..., OpenSSH], connect: Connect, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    plain, locked = (
        make_key(tmp_path / ".ssh", kind, name=f"id_{kind}"),
        make_key(tmp_path, kind, passphrase="x y"),
    )
    monkeypatch.setenv("PHRASE", "x y")
    server = sshd(authorized=[plain, locked])
    with server.place() as place:
        assert connect(place.config(key_filename=[])).found == b"hello\n"
        assert connect(place.config(key_filename=str(locked), passphrase="env:PHRASE")).found == b"hello\n"
        assert connect(place.config(key_filename=[plain, locked], passphrase="wrong")).found == b"hello\n"


PKCS8 = {
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ecdsa": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", PKCS8)
def test_each_kind_of_key_opens_as_openssl_writes_it(
    sshd: Callable[..., OpenSSH],
    connect: Connect,
    refused: Callable[..., NoEndpointError],
    tmp_path: Path,
    kind: str,
) -> None:
    key: Any = PKCS8[kind]()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    plain, locked = tmp_path / "plain", tmp_path / "locked"
    plain.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    locked.write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"x y")))
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    (tmp_path / "plain.pub").write_bytes(key.public_key().public_bytes(*openssh) + b"\n")
    server = sshd(authorized=[plain])
    with server.place() as place:
        assert connect(place.config(key_filename=plain)).found == b"hello\n"
        assert connect(place.config(key_filename=locked, passphrase="x y")).found == b"hello\n"
        assert "encrypted, and no passphrase is set" in str(refused(place.config(key_filename=locked)))
        words = str(refused(place.config(key_filename=locked, passphrase="wrong")))
        assert f"key file {locked}: wrong passphrase" in words


def test_key_of_a_kind_that_is_not_supported_is_told_as_such(
    openssh_place: SSHPlace, refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    key = dsa.generate_private_key(2048)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "dsa").write_bytes(
        key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret"))
    )
    words = str(refused(openssh_place.config(key_filename=tmp_path / "dsa", passphrase="secret")))
    assert f"key file {tmp_path / 'dsa'}: a DSA key, which is not supported" in words


def test_certificate_beside_the_key_is_used(
    sshd: Callable[..., OpenSSH], connect: Connect, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path, name="ca"), make_key(tmp_path, name="mine")
    server = sshd(f"TrustedUserCAKeys {authority}.pub")
    command: list[str | Path] = [
        program("ssh-keygen", "apt-get install openssh-client"),
        "-q",
        "-s",
        authority,
        "-I",
        "id",
        "-n",
        server.user,
        f"{key}.pub",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with server.place() as place:
        assert connect(place.config(key_filename=key)).found == b"hello\n"
        assert connect(place.config(key_filename=f"{key}-cert.pub")).found == b"hello\n"


def test_key_with_a_certificate_that_is_not_taken_is_tried_without(
    sshd: Callable[..., OpenSSH], connect: Connect, tmp_path: Path
) -> None:
    authority, key = make_key(tmp_path, name="ca"), make_key(tmp_path, name="mine")
    subprocess.run(
        [
            program("ssh-keygen", "apt-get install openssh-client"),
            "-q",
            "-s",
            authority,
            "-I",
            "id",
            "-n",
            "nobody",
            f"{key}.pub",
        ],
        check=True,
    )
    server = sshd(authorized=[key])
    with server.place() as place:
        assert connect(place.config(key_filename=key)).found == b"hello\n"


def test_refusal_says_what_was_tried(
    openssh_place: SSHPlace, refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    wrong, locked = make_key(tmp_path, name="wrong"), make_key(tmp_path, passphrase="x", name="locked")
    (tmp_path / "junk").write_text("no key")
    files = [str(wrong), str(locked), str(tmp_path / "junk"), str(tmp_path / "none"), str(tmp_path)]
    error = refused(openssh_place.config(key_filename=files, agent=True, password="open sesame"))
    words = str(error)
    assert isinstance(error, AuthenticationError)
    assert "the server accepts publickey" in words
    assert "no agent: SSH_AUTH_SOCK is not set" in words
    assert f"key file {wrong}: refused" in words
    assert f"key file {locked}: encrypted, and no passphrase is set" in words
    assert f"key file {tmp_path / 'junk'}: not a private key" in words
    assert f"key file {tmp_path / 'none'}: No such file" in words
    assert f"key file {tmp_path}: not a file" in words
    assert "open sesame" not in words
    again = str(refused(openssh_place.config(key_filename=str(locked), passphrase="open sesame")))
    assert f"key file {locked}: wrong passphrase" in again
    assert "open sesame" not in again
    missing = str(refused(openssh_place.config(key_filename=str(locked), passphrase="env:NO_SUCH_THING")))
    assert "NO_SUCH_THING" in missing


def test_server_that_ends_it_after_some_tries_is_told_as_such(
    sshd: Callable[..., OpenSSH], refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    server = sshd("MaxAuthTries 2")
    with server.place() as place:
        error = refused(place.config(key_filename=[make_key(tmp_path) for _ in range(4)]))
    assert isinstance(error, AuthenticationError)
    assert "after refusing 1 other attempts" in str(error)


@pytest.mark.parametrize("kind", ["password", "keyboard-interactive"])
def test_password_is_used_where_it_is_taken(
    door: Callable[..., Door], connect: Connect, refused: Callable[..., NoEndpointError], kind: str
) -> None:
    def answer(method: str, what: str) -> int:
        return int(AUTH_SUCCESSFUL if (method, what) == (kind, "open sesame") else AUTH_FAILED)

    opened = door(answer, always(kind))
    connect(opened.config(password="open sesame"), check=nothing)
    assert opened.tries == [("none", ""), (kind, "open sesame")]
    error = refused(opened.config(password="wrong"))
    assert isinstance(error, AuthenticationError)
    assert f"the server accepts {kind}; tried: the password" in str(error)
    assert "wrong" not in str(error)
    assert "no password is set" in str(refused(opened.config()))


def test_questions_beyond_the_password_are_told(
    door: Callable[..., Door], refused: Callable[..., NoEndpointError]
) -> None:
    asking = door(methods=always("keyboard-interactive"))
    asking.questions = [("Password: ", False), ("Code: ", False), ("Name: ", True)]
    error = refused(asking.config(password="open sesame"))
    assert "it also asked 'Code:', 'Name:'" in str(error)
    assert asking.tries[-1] == ("keyboard-interactive", "open sesame||")


def test_key_and_then_password_are_given(door: Callable[..., Door], connect: Connect, tmp_path: Path) -> None:
    wrong, key = make_key(tmp_path), make_key(tmp_path)

    def answer(method: str, what: str) -> int:
        if method == "publickey" and what == public(key):
            return int(AUTH_PARTIALLY_SUCCESSFUL)
        return int(AUTH_SUCCESSFUL if (method, what) == ("password", "open sesame") else AUTH_FAILED)

    opened = door(answer, lambda tries: "password" if ("publickey", public(key)) in tries else "publickey")
    connect(opened.config(key_filename=[wrong, key], password="open sesame"), check=nothing)
    assert [method for method, _ in opened.tries] == ["none", "publickey", "publickey", "password"]


def test_two_keys_are_given(sshd: Callable[..., OpenSSH], connect: Connect, tmp_path: Path) -> None:
    second = make_key(tmp_path)
    server = sshd("AuthenticationMethods publickey,publickey", authorized=[second])
    with server.place() as place:
        assert connect(place.config(key_filename=[place.key_filename, second])).found == b"hello\n"


def test_half_of_what_is_wanted_is_told(
    sshd: Callable[..., OpenSSH], refused: Callable[..., NoEndpointError]
) -> None:
    server = sshd("AuthenticationMethods publickey,password", "PasswordAuthentication yes")
    with server.place() as place:
        words = str(refused(place.config(), check=nothing))
    assert "the server accepts password" in words
    assert "accepted, but not sufficient; no password is set" in words


def test_authentication_has_an_end(
    door: Callable[..., Door], refused: Callable[..., NoEndpointError]
) -> None:
    go_on = threading.Event()

    def answer(method: str, what: str) -> int:
        go_on.wait(PATIENCE)
        return int(AUTH_FAILED)

    hanging = door(answer)
    error = refused(hanging.config(password="x"), limits=DialTimeouts(60.0, 60.0, 60.0, 0.3))
    go_on.set()
    assert "authentication took longer than 0.3 s" in str(error)
    assert not isinstance(error, AuthenticationError)


def test_connection_that_ends_while_logging_in_is_no_refusal(
    door: Callable[..., Door], refused: Callable[..., NoEndpointError]
) -> None:
    def answer(method: str, what: str) -> int:
        raise EOFError  # so paramiko ends a connection without a word

    error = refused(door(answer).config(password="x"))
    assert "the connection ended during authentication" in str(error)
    assert not isinstance(error, AuthenticationError)


# The agent


@pytest.fixture
def agent(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Starts an agent that holds the keys."""

    def agent(*keys: Path | str, options: tuple[str, ...] = ()) -> None:
        place = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sb-"))) / "s"
        )  # a short name, as sockets need
        ssh_agent = program("ssh-agent", "apt-get install openssh-client")
        process = stack.enter_context(
            subprocess.Popen(
                [ssh_agent, "-D", "-a", place], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        )
        stack.callback(process.kill)
        wait_for(place.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        for key in keys:
            subprocess.run(["ssh-add", "-q", *options, key], check=True, capture_output=True)

    return agent


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_agent_opens(
    sshd: Callable[..., OpenSSH], connect: Connect, agent: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    key = make_key(tmp_path, kind)
    agent(make_key(tmp_path), key)
    server = sshd(authorized=[key])
    with server.place() as place:
        assert connect(place.config(key_filename=[], agent=True)).found == b"hello\n"


def test_named_key_comes_before_those_of_the_agent(
    sshd: Callable[..., OpenSSH], connect: Connect, agent: Callable[..., None], tmp_path: Path
) -> None:
    agent(*(make_key(tmp_path) for _ in range(4)))
    server = sshd("MaxAuthTries 1")
    with server.place() as place:
        assert connect(place.config(agent=True)).found == b"hello\n"


def test_agent_signs_for_a_key_file_that_is_locked(
    sshd: Callable[..., OpenSSH], connect: Connect, agent: Callable[..., None], tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    others = [make_key(tmp_path) for _ in range(3)]
    agent(*others, key)
    subprocess.run(
        [program("ssh-keygen", "apt-get install openssh-client"), "-q", "-p", "-N", "secret", "-f", key],
        check=True,
        capture_output=True,
    )
    server = sshd("MaxAuthTries 1", authorized=[key])
    with server.place() as place:
        assert connect(place.config(key_filename=key, agent=True)).found == b"hello\n"


def test_public_half_selects_the_key_of_the_agent(
    sshd: Callable[..., OpenSSH], connect: Connect, agent: Callable[..., None], tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    agent(*(make_key(tmp_path) for _ in range(3)), key)
    key.unlink()
    (tmp_path / "config").write_text(f"Host *\n IdentityFile {key}.pub\n IdentitiesOnly yes\n")
    server = sshd("MaxAuthTries 1", authorized=[key])
    with server.place() as place:
        configured = place.config(key_filename=[], agent=True, ssh_config_file=tmp_path / "config")
        assert connect(configured).found == b"hello\n"
        assert connect(place.config(key_filename=f"{key}.pub", agent=True)).found == b"hello\n"
        with pytest.raises(
            AuthenticationError, match="a public key whose private key the agent does not hold"
        ):
            connect(place.config(key_filename=f"{key}.pub"))


def test_agent_signs_for_a_locked_key_without_its_public_half(
    sshd: Callable[..., OpenSSH], connect: Connect, agent: Callable[..., None], tmp_path: Path
) -> None:
    key = make_key(tmp_path)
    agent(*(make_key(tmp_path) for _ in range(3)), key)
    keygen = program("ssh-keygen", "apt-get install openssh-client")
    subprocess.run([keygen, "-q", "-p", "-N", "secret", "-f", key], check=True, capture_output=True)
    server = sshd("MaxAuthTries 1", authorized=[key])
    Path(f"{key}.pub").unlink()
    with server.place() as place:
        assert connect(place.config(key_filename=key, agent=True)).found == b"hello\n"


def test_identity_agent_of_the_configuration_is_the_one_that_is_asked(
    sshd: Callable[..., OpenSSH],
    connect: Connect,
    agent: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = make_key(tmp_path)
    agent(key)
    mine = os.environ["SSH_AUTH_SOCK"]
    monkeypatch.setenv("OTHER_AGENT", mine)
    server = sshd(authorized=[key])
    with server.place() as place:

        def config(agent_of_the_file: str) -> dict[str, Any]:
            (tmp_path / "config").write_text(f"Host *\n IdentityAgent {agent_of_the_file}\n")
            return place.config(key_filename=[], agent=True, ssh_config_file=tmp_path / "config")

        assert connect(config("SSH_AUTH_SOCK")).found == b"hello\n"
        with pytest.raises(AuthenticationError, match="no agent: IdentityAgent is not set"):
            connect(config("none"))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
        for named in (mine, "$OTHER_AGENT", "${OTHER_AGENT}", f"~/../{Path(mine).parent.name}/s"):
            if named.startswith("~"):
                monkeypatch.setenv("HOME", f"{Path(mine).parent}")
            assert connect(config(named)).found == b"hello\n"


def test_agent_that_cannot_sign_is_passed_over(
    sshd: Callable[..., OpenSSH],
    refused: Callable[..., NoEndpointError],
    agent: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")  # what asks the user says no
    monkeypatch.setenv("DISPLAY", ":0")
    key = make_key(tmp_path)
    agent(key, options=("-c",))
    (tmp_path / ".ssh").mkdir()
    fallback = make_key(tmp_path / ".ssh", name="id_ed25519")
    server = sshd(authorized=[key, fallback])
    with server.place() as place:
        assert dial_and_close(place.config(key_filename=[], agent=True)) == b"hello\n"
        fallback.unlink()
        assert "cannot sign (key cannot be used for signing)" in str(
            refused(place.config(key_filename=[], agent=True))
        )


def test_agent_that_is_gone_is_told(
    openssh_place: SSHPlace,
    connect: Connect,
    refused: Callable[..., NoEndpointError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "gone"))
    assert connect(openssh_place.config(agent=True)).found == b"hello\n"
    words = str(refused(openssh_place.config(agent=True, key_filename=[])))
    assert f"no agent at SSH_AUTH_SOCK={tmp_path / 'gone'}: No such file or directory" in words
    assert "no key file ~/.ssh/id_ed25519" in words


# The OpenSSH configuration


def test_alias_is_enough(openssh_place: SSHPlace, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        f"Host work\n HostName {openssh_place.host}\n Port {openssh_place.port}\n User {openssh_place.user}\n"
        f" IdentityFile {openssh_place.key_filename}\n IdentitiesOnly yes\n"
    )
    config = {
        "endpoints": [["work"]],
        "ssh_config_file": tmp_path / "config",
        "known_hosts": openssh_place.known_hosts,
    }
    assert connect(config).found == b"hello\n"


def test_only_the_named_identities_are_offered(
    door: Callable[..., Door],
    refused: Callable[..., NoEndpointError],
    agent: Callable[..., None],
    tmp_path: Path,
) -> None:
    named, other = make_key(tmp_path), make_key(tmp_path)
    agent(other, named)
    (tmp_path / "config").write_text(f"IdentityFile {named}\nIdentitiesOnly yes\n")
    closed = door()
    refused(closed.config(agent=True, ssh_config_file=tmp_path / "config"))
    assert closed.tries == [("none", ""), ("publickey", public(named))]


def test_jump_goes_through_the_other_server(
    sshd: Callable[..., OpenSSH], openssh_place: SSHPlace, connect: Connect, tmp_path: Path
) -> None:
    gate = sshd()
    known = tmp_path / "known"
    known.write_text(Path(gate.known_hosts).read_text() + Path(openssh_place.known_hosts).read_text())
    (tmp_path / "config").write_text(
        f"Host nas\n HostName {openssh_place.host}\n Port {openssh_place.port}\n ProxyJump gate\n"
        f"Host gate\n HostName {gate.host}\n Port {gate.port}\n"
    )
    config = openssh_place.config(
        endpoints=[["nas"]],
        ssh_config_file=tmp_path / "config",
        known_hosts=known,
        key_filename=[openssh_place.key_filename, gate.key_filename],
    )

    def came_from(client: Any, endpoint: object) -> bytes:
        return bytes(client.exec_command("echo $SSH_CONNECTION")[1].read())

    found = connect(config, check=came_from)
    assert found.found.split()[0] == b"127.0.0.1"
    assert found.client.get_transport().sock is not None
    assert isinstance(found.client.get_transport().sock, paramiko.Channel)


def test_host_keys_of_jumps_and_beyond_are_checked(
    sshd: Callable[..., OpenSSH],
    door: Callable[..., Door],
    refused: Callable[..., NoEndpointError],
    tmp_path: Path,
) -> None:
    """What lies behind a jump is not this machine, whatever its address is."""
    gate, behind = sshd(), door(yes)
    (tmp_path / "config").write_text(
        f"Host nas\n HostName 127.0.0.1\n ProxyJump gate\nHost gate\n HostName {gate.host}\n Port {gate.port}\n"
    )
    config = behind.config(
        endpoints=[["nas", behind.port]],
        ssh_config_file=tmp_path / "config",
        key_filename=gate.key_filename,
        user=gate.user,
    )
    words = str(refused({**config, "known_hosts": gate.known_hosts}))
    assert f"[127.0.0.1]:{behind.port} is in none of" in words
    wrong = tmp_path / "wrong"
    wrong.write_text(f"[127.0.0.1]:{gate.port} ssh-ed25519 {public(make_key(tmp_path))}\n")
    words = str(refused({**config, "known_hosts": wrong}))
    assert f"through gate:{gate.port}: host key refused: host key mismatch" in words
    assert behind.tries == []


def test_known_hosts_of_the_configuration_count_for_each_hop(
    sshd: Callable[..., OpenSSH],
    openssh_place: SSHPlace,
    connect: Connect,
    refused: Callable[..., NoEndpointError],
    tmp_path: Path,
) -> None:
    gate = sshd()
    known = Path(openssh_place.known_hosts).read_text().split(maxsplit=1)[1]
    (tmp_path / "of nas").write_text(f"the-nas {known}")
    (tmp_path / "of-gate").write_text(Path(gate.known_hosts).read_text())
    text = (
        f"Host nas\n HostName {openssh_place.host}\n Port {openssh_place.port}\n ProxyJump gate\n"
        f' UserKnownHostsFile /dev/null "{tmp_path}/of %n"\n HostKeyAlias the-nas\n'
        f"Host gate\n HostName {gate.host}\n Port {gate.port}\n UserKnownHostsFile {tmp_path}/of-%n\n"
        "Host *\n GlobalKnownHostsFile none\n"
    )
    (tmp_path / "config").write_text(text)
    config = openssh_place.config(
        endpoints=[["nas"]],
        ssh_config_file=tmp_path / "config",
        key_filename=[openssh_place.key_filename, gate.key_filename],
    )
    del config["known_hosts"]
    assert connect(config).client.get_transport().is_active()
    (tmp_path / "of-gate").write_text(f"[{gate.host}]:{gate.port} {known}")
    assert "through gate:" in str(refused(config))
    (tmp_path / "of-gate").write_text(Path(gate.known_hosts).read_text())
    (tmp_path / "of nas").unlink()
    assert "the-nas is in none of the known_hosts files" in str(refused(config))


def test_password_is_not_given_to_a_jump(
    door: Callable[..., Door], refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    gate = door()
    (tmp_path / "config").write_text(f"Host nas\nProxyJump ann@127.0.0.1:{gate.port}\n")
    config = gate.config(endpoints=[["nas", 22]], ssh_config_file=tmp_path / "config", password="open sesame")
    refused(config)
    assert ("password", "open sesame") not in gate.tries


RELAY = "import socket,sys,threading,os\ns=socket.create_connection((sys.argv[1],int(sys.argv[2])))\n"
RELAY += "def up():\n  while d:=os.read(0,65536): s.sendall(d)\n  s.shutdown(1)\n"
RELAY += "threading.Thread(target=up,daemon=True).start()\nwhile d:=s.recv(65536): os.write(1,d)\n"


def test_proxy_command_gives_the_connection(
    openssh_place: SSHPlace, connect: Connect, refused: Callable[..., NoEndpointError], tmp_path: Path
) -> None:
    (tmp_path / "relay.py").write_text(RELAY)
    command = f"sh -c 'echo $$ > {tmp_path}/pid; exec {sys.executable} {tmp_path}/relay.py %h %p'"
    (tmp_path / "config").write_text(f"ProxyCommand {command}\n")
    config = openssh_place.config(ssh_config_file=tmp_path / "config")
    found = connect(config)
    assert found.found == b"hello\n"
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert "is in none of" in str(refused({**config, "known_hosts": []}))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    "command", few(["sh -c 'echo no way there >&2; exit 1'", "sh -c 'echo no way there >&2; sleep 1000'"], 1)
)
def test_proxy_command_that_fails_is_told(
    openssh_place: SSHPlace, refused: Callable[..., NoEndpointError], tmp_path: Path, command: str
) -> None:
    (tmp_path / "config").write_text(f"ProxyCommand {command}\n")
    error = refused(
        openssh_place.config(ssh_config_file=tmp_path / "config"), limits=replace(QUICK, banner=3.0)
    )
    assert "(ProxyCommand: no way there)" in str(error)


# Substitutes of paramiko.SSHClient


def test_mock_is_taken_for_a_client(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    made = MagicMock()
    monkeypatch.setattr(paramiko, "SSHClient", made)
    found = connect({"user": "ann", "endpoints": [["nas", 22]]}, check=nothing)
    assert found.client is made.return_value
    keywords = made.return_value.connect.call_args.kwargs
    assert {name: keywords[name] for name in ("hostname", "port", "username", "timeout")} == {
        "hostname": "nas",
        "port": 22,
        "username": "ann",
        "timeout": 2.0,
    }
    assert "sock" not in keywords
    found.close()
    made.return_value.close.assert_called()


def test_client_with_connect_alone_is_enough(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    tried = []

    class Fake:
        def connect(self, hostname: str, **_: object) -> None:
            tried.append(hostname)
            if hostname == "a":
                raise paramiko.AuthenticationException("no")
            if hostname == "b":
                raise TimeoutError

    monkeypatch.setattr(paramiko, "SSHClient", Fake)
    config = {"user": "ann", "endpoints": [["a", 1], ["b", 2], ["c", 3]]}
    assert connect(config, check=nothing, stagger=LONG).endpoint.host == "c"
    assert tried == ["a", "b", "c"]
    with pytest.raises(NoEndpointError) as raised:
        connect({**config, "endpoints": [["a", 1], ["b", 2]]}, check=nothing)
    assert str(raised.value) == f"{WHERE}: no endpoint works: a:1: no; b:2: no connection within 2 s"
    with pytest.raises(AuthenticationError):
        connect({**config, "endpoints": [["a", 1]]}, check=nothing)


def test_configuration_error_of_one_endpoint_is_its_reason(
    refused: Callable[..., NoEndpointError], door: Callable[..., Door], tmp_path: Path
) -> None:
    error = refused(door().config(known_hosts=tmp_path))
    assert "known_hosts: cannot read it" in str(error)
    assert isinstance(error.__cause__, ConfigurationError)


def test_transport_may_be_the_callers(openssh_place: SSHPlace, connect: Connect) -> None:
    made = []

    def make(sock: Any, **options: Any) -> Any:
        made.append(paramiko.Transport(sock, **options))
        return made[-1]

    assert connect(openssh_place.config(), make=make).client.get_transport() is made[0]
