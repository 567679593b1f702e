"""The SSH servers of the tests do what their docstrings say, as a plain client sees them."""

from __future__ import annotations

import os
import pwd
import random
import socket
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from storage_backend.testing.subject import same
from tests.conftest import unavailable
from tests.servers import PATIENCE, ServerUnavailableError
from tests.ssh_proxy import BlackHole, Counts, Proxy
from tests.ssh_servers import (
    AsyncSSH,
    OpenSSH,
    ParamikoSFTP,
    RcloneSFTP,
    SSHServer,
    make_key,
    shell_script,
    write_known_hosts,
)

pytest.importorskip("paramiko")

if TYPE_CHECKING:
    import paramiko

    from tests.ssh_servers import Agent, SSHPlace

Server = TypeVar("Server", bound=SSHServer)

pytestmark = pytest.mark.soak  # of the tests' own servers: what uses them notices as well


@contextmanager
def started(make: Callable[[], Server]) -> Iterator[Server]:
    """A server of one test's own."""
    try:
        server = make()
    except ServerUnavailableError as error:
        unavailable(str(error))
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def connected(place: SSHPlace, **more: Any) -> Iterator[paramiko.SSHClient]:
    """A strict client of the place."""
    import paramiko

    client = paramiko.SSHClient()
    client.load_host_keys(place.known_hosts)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    arguments = {
        "hostname": place.host,
        "port": place.port,
        "username": place.user,
        "key_filename": place.key_filename,
        "allow_agent": False,
        "look_for_keys": False,
        "timeout": PATIENCE,
        "banner_timeout": PATIENCE,
        "auth_timeout": PATIENCE,
    }
    try:
        client.connect(**{**arguments, **more})
        yield client
    finally:
        client.close()


def run(client: paramiko.SSHClient, command: str) -> tuple[int, bytes, bytes]:
    """Exit status, output and error output."""
    _, output, errors = client.exec_command(command, timeout=PATIENCE)
    found = output.read(), errors.read()  # first, since a command with much to say waits until it is heard
    return output.channel.recv_exit_status(), *found


def put(sftp: paramiko.SFTPClient, path: str, content: bytes) -> None:
    with sftp.open(path, "wb") as file:
        file.write(content)


@pytest.fixture(params=["openssh", "internal_sftp", "asyncssh", "rclone_sftp", "paramiko_sftp"])
def place(request: pytest.FixtureRequest) -> SSHPlace:
    found: SSHPlace = request.getfixturevalue(f"{request.param}_place")
    return found


def test_a_place_is_empty_and_its_base_and_local_are_one_directory(place: SSHPlace) -> None:
    with connected(place) as client:
        sftp = client.open_sftp()
        assert sftp.listdir(place.base) == []
        put(sftp, f"{place.base}/a", b"text")
        assert (place.local / "a").read_bytes() == b"text"
        (place.local / "b").write_bytes(b"other")
        # rclone looks at the disk again after a moment.
        deadline = time.monotonic() + PATIENCE
        while sorted(sftp.listdir(place.base)) != ["a", "b"]:
            assert time.monotonic() < deadline
        with sftp.open(f"{place.base}/b", "rb") as file:
            assert file.read() == b"other"


def test_another_key_is_refused(place: SSHPlace, tmp_path: Path) -> None:
    import paramiko

    with (
        pytest.raises(paramiko.AuthenticationException),
        connected(place, key_filename=str(make_key(tmp_path))),
    ):
        pass


def test_openssh_has_a_shell_and_sftp(openssh_place: SSHPlace) -> None:
    with connected(openssh_place) as client:
        assert run(client, "echo a; echo b >&2; exit 3") == (3, b"a\n", b"b\n")
        sftp = client.open_sftp()
        put(sftp, f"{openssh_place.base}/a", b"text")
        put(sftp, f"{openssh_place.base}/b", b"other")
        sftp.posix_rename(f"{openssh_place.base}/a", f"{openssh_place.base}/b")
        assert (openssh_place.local / "b").read_bytes() == b"text"
        assert [entry.name for entry in openssh_place.local.iterdir()] == ["b"]


def test_internal_sftp_sees_its_own_root_and_runs_nothing(internal_sftp_place: SSHPlace) -> None:
    place = internal_sftp_place
    assert place.base.startswith("/data/")
    with connected(place) as client:
        sftp = client.open_sftp()
        put(sftp, f"{place.base}/a", b"text")
        assert (place.local / "a").read_bytes() == b"text"
        assert sftp.listdir("/data") == [place.local.name]
        status, output, errors = run(client, "echo a")
        assert status == 1
        assert b"a\n" not in (output, errors)


def test_asyncssh_has_a_shell_and_sftp(asyncssh_place: SSHPlace) -> None:
    with connected(asyncssh_place) as client:
        assert run(client, "echo a; echo b >&2; exit 3") == (3, b"a\n", b"b\n")
        sftp = client.open_sftp()
        put(sftp, f"{asyncssh_place.base}/a", b"text")
        put(sftp, f"{asyncssh_place.base}/b", b"other")
        sftp.posix_rename(f"{asyncssh_place.base}/a", f"{asyncssh_place.base}/b")
        assert (asyncssh_place.local / "b").read_bytes() == b"text"


@pytest.mark.parametrize("count", [0, 1, 5_000_000])
def test_asyncssh_passes_a_command_all_its_input_and_takes_all_its_output(
    asyncssh_place: SSHPlace, count: int
) -> None:
    with connected(asyncssh_place) as client:
        given, output, _ = client.exec_command("cat", timeout=PATIENCE)
        sender = threading.Thread(target=lambda: (given.write(bytes(count)), given.channel.shutdown_write()))
        sender.start()
        assert same(output.read(), bytes(count))
        sender.join()
        assert output.channel.recv_exit_status() == 0


def test_rclone_overwrites_by_rename_and_has_digests_but_no_shell(rclone_sftp_place: SSHPlace) -> None:
    place = rclone_sftp_place
    with connected(place) as client:
        sftp = client.open_sftp()
        put(sftp, f"{place.base}/a", b"text")
        put(sftp, f"{place.base}/b", b"other")
        sftp.rename(f"{place.base}/a", f"{place.base}/b")
        assert (place.local / "b").read_bytes() == b"text"
        assert run(client, f"sha256sum {place.base}/b")[1].split()[0] == sha256(b"text").hexdigest().encode()
        assert run(client, "true")[0] == 1


def test_rclone_with_a_cache_takes_writes_in_any_order() -> None:
    with (
        started(lambda: RcloneSFTP(cache_mode="writes")) as server,
        server.place() as place,
        connected(place) as client,
    ):
        sftp = client.open_sftp()
        with sftp.open(f"{place.base}/a", "wb") as file:
            file.seek(3)
            file.write(b"def")
            file.seek(0)
            file.write(b"abc")
        with sftp.open(f"{place.base}/a", "rb") as file:
            assert file.read() == b"abcdef"


def test_paramiko_has_no_extensions_and_no_commands_and_renames_over_nothing(
    paramiko_sftp_place: SSHPlace,
) -> None:
    import paramiko

    place = paramiko_sftp_place
    with connected(place) as client:
        with pytest.raises(paramiko.SSHException):
            run(client, "true")
        channel = client.get_transport().open_session(timeout=PATIENCE)
        channel.settimeout(PATIENCE)
        channel.invoke_subsystem("sftp")
        channel.sendall(struct.pack(">IBI", 5, 1, 3))
        assert channel.recv(100) == struct.pack(
            ">IBI", 5, 2, 3
        )  # a version packet that ends after the version
        sftp = client.open_sftp()
        put(sftp, f"{place.base}/a", b"text")
        put(sftp, f"{place.base}/b", b"other")
        for rename in (sftp.rename, sftp.posix_rename):
            with pytest.raises(OSError, match=r"Failure|unsupported"):
                rename(f"{place.base}/a", f"{place.base}/b")
        assert (place.local / "b").read_bytes() == b"other"
        sftp.rename(f"{place.base}/a", f"{place.base}/c")
        sftp.truncate(f"{place.base}/c", 2)
        assert (place.local / "c").read_bytes() == b"te"


@pytest.mark.parametrize("kind", [OpenSSH, AsyncSSH, RcloneSFTP, ParamikoSFTP])
def test_a_killed_server_ends_its_sessions_refuses_and_comes_back_on_its_port(kind: type[SSHServer]) -> None:
    import paramiko

    with started(kind) as server, server.place() as place:
        with connected(place) as client:
            sftp = client.open_sftp()
            server.kill()
            with pytest.raises((OSError, EOFError, paramiko.SSHException)):
                sftp.listdir(place.base)
        with pytest.raises(OSError, match="Unable to connect"), connected(place):
            pass
        server.start()
        with connected(place) as client:
            assert client.open_sftp().listdir(place.base) == []


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it is sent."""

    class Back(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                while data := self.request.recv(1 << 16):
                    self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Back) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()
        thread.join()


def reach(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def receive(connection: socket.socket, count: int) -> bytes:
    """So many bytes, or those before the end."""
    found = b""
    while len(found) < count and (data := connection.recv(1 << 16)):
        found += data
    return found


def test_a_proxy_passes_all_on_and_counts(echo: tuple[str, int]) -> None:
    content = random.Random(1).randbytes(5_000_000)
    with Proxy(*echo) as proxy, reach(proxy.port) as one, reach(proxy.port) as other:

        def send() -> None:
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        assert same(receive(one, len(content) + 1), content)
        sender.join()
        other.sendall(b"x")
        assert receive(other, 1) == b"x"
        assert proxy.counts() == Counts(2, len(content) + 1, len(content) + 1)


def test_a_proxy_delays_each_direction_and_not_the_throughput(echo: tuple[str, int]) -> None:
    content = bytes(20_000_000)
    with Proxy(*echo, delay=0.25) as proxy, reach(proxy.port) as connection:
        begun = time.monotonic()
        sender = threading.Thread(target=connection.sendall, args=[content])
        sender.start()
        found = len(receive(connection, 1))
        assert time.monotonic() - begun >= 0.5
        found += len(receive(connection, len(content) - found))  # a round trip a window would take minutes
        assert found == len(content)
        sender.join()


def test_a_proxy_cuts_after_exactly_so_many_bytes(echo: tuple[str, int]) -> None:
    with Proxy(*echo) as proxy:
        with reach(proxy.port) as connection:
            proxy.cut_after(1000, "from_server", reset=False)
            connection.sendall(bytes(3000))
            assert receive(connection, 3000) == bytes(1000)
        with reach(proxy.port) as connection:
            proxy.cut_after(1000, "from_client", then_refuse=True)
            connection.sendall(bytes(3000))
            with pytest.raises(ConnectionResetError):
                receive(connection, 3000)
        with pytest.raises(ConnectionRefusedError):
            reach(proxy.port)
        proxy.heal()
        with reach(proxy.port) as connection:
            connection.sendall(b"x")
            assert receive(connection, 1) == b"x"
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_a_proxy_swallows_what_comes_to_a_black_hole(echo: tuple[str, int]) -> None:
    with Proxy(*echo) as proxy, reach(proxy.port) as old:
        old.sendall(b"x")
        assert receive(old, 1) == b"x"
        proxy.black_hole()
        with reach(proxy.port) as new:
            for connection in (old, new):
                connection.sendall(bytes(1_000_000))
                connection.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    connection.recv(1)
        assert proxy.counts().from_client == 1
        proxy.heal()
        old.sendall(b"y")
        with pytest.raises(TimeoutError):
            old.recv(1)
        with reach(proxy.port) as connection:
            connection.sendall(b"x")
            assert receive(connection, 1) == b"x"


def test_a_silent_proxy_takes_connections_and_leaves_the_old_ones(openssh_place: SSHPlace) -> None:
    with Proxy(openssh_place.host, openssh_place.port) as proxy, reach(proxy.port) as old:
        assert receive(old, 4)[:4] == b"SSH-"
        proxy.silent()
        with reach(proxy.port) as new:
            new.settimeout(0.2)
            with pytest.raises(TimeoutError):
                new.recv(1)
        assert proxy.accepted == 2
        old.sendall(b"SSH-2.0-test\r\n")
        assert len(receive(old, 100)) >= 100


def test_ssh_goes_through_a_proxy(openssh_place: SSHPlace) -> None:
    with (
        Proxy(openssh_place.host, openssh_place.port, delay=0.01) as proxy,
        # Connected beforehand, so that the host key is looked up by the server's own port.
        connected(openssh_place, sock=reach(proxy.port)) as client,
    ):
        assert same(run(client, "head -c 1000000 /dev/zero")[1], bytes(1_000_000))


@pytest.mark.skipif(sys.platform != "linux", reason="what a full queue of connections does is Linux's")
def test_connecting_to_a_black_hole_hangs() -> None:
    with BlackHole() as hole:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                socket.create_connection((hole.host, hole.port), timeout=0.5)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((hole.host, hole.port), timeout=PATIENCE)


ANSWERS = {
    "bash": (3, b"bash\n", b""),
    "dash": (3, b"\n", b""),
    "busybox": (3, b"\n", b""),
    "noisy": (3, b"Welcome to this machine.\n\n", b""),
    "slow": (3, b"\n", b""),
    "csh-like": (1, b"", b"Illegal variable name.\n"),
    "mute": (0, b"", b""),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_shell_script_answers_in_its_way_and_lets_sftp_through(kind: str, tmp_path: Path) -> None:
    with (
        started(lambda: OpenSSH(command_wrapper=shell_script(tmp_path, kind))) as server,
        server.place() as place,
        connected(place) as client,
    ):
        command = "echo ${BASH##*/}; exit 3"  # only bash sets it
        assert run(client, command) == ANSWERS[kind]
        put(client.open_sftp(), f"{place.base}/a", b"text")
        assert (place.local / "a").read_bytes() == b"text"


def test_busybox_has_no_other_programs_and_those_named_are_missing(tmp_path: Path) -> None:
    with (
        started(lambda: OpenSSH(command_wrapper=shell_script(tmp_path, "busybox", ["tar"]))) as server,
        server.place() as place,
        connected(place) as client,
    ):
        assert run(client, "python3 --version")[0] == 127
        assert run(client, "command -v find sort sha256sum")[0] == 0
        assert run(client, f"find {place.base} -printf x")[0] == 1
        assert run(client, "tar --help")[0] == 127


def test_a_hung_command_ends_with_its_server_and_the_server_takes_new_sessions(tmp_path: Path) -> None:
    with (
        started(lambda: OpenSSH(command_wrapper=shell_script(tmp_path, "hung"))) as server,
        server.place() as place,
    ):
        with connected(place) as client:
            _, output, _ = client.exec_command("true", timeout=0.3)
            with pytest.raises(TimeoutError):
                output.read()
            output.channel.settimeout(PATIENCE)
            server.kill_sessions()
            assert output.read() == b""
            assert not client.get_transport().is_active()
        with connected(place) as client:
            assert client.open_sftp().listdir(place.base) == []


@pytest.mark.skipif(pwd.getpwuid(os.geteuid()).pw_shell != "/bin/bash", reason="the login shell is not bash")
def test_bash_reads_the_settings_of_the_home_that_was_given(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("echo noise\n")
    with (
        started(lambda: OpenSSH(home=tmp_path)) as server,
        server.place() as place,
        connected(place) as client,
    ):
        assert run(client, "echo ~") == (0, f"noise\n{tmp_path}\n".encode(), b"")


def test_servers_share_a_directory_a_client_key_and_a_file_of_host_keys(
    openssh_server: OpenSSH, tmp_path: Path, make_ssh_key: Callable[..., Path]
) -> None:
    keys = [make_ssh_key("ecdsa"), make_ssh_key("rsa")]
    key = openssh_server.key_filename
    with started(
        lambda: OpenSSH(host="127.0.0.2", host_keys=keys, authorized=[key], data=openssh_server.local)
    ) as other:
        known_hosts = write_known_hosts(tmp_path / "known_hosts", openssh_server, other)
        with openssh_server.place() as place:
            both = [replace(place, known_hosts=known_hosts)]
            both.append(replace(both[0], host=other.host, port=other.port))
            for count, each in enumerate(both):
                with connected(each) as client:
                    put(client.open_sftp(), f"{place.base}/{count}", b"text")
            assert sorted(entry.name for entry in place.local.iterdir()) == ["0", "1"]


def test_extra_settings_win(openssh_server: OpenSSH) -> None:
    with (
        started(lambda: OpenSSH(extra=["MaxSessions 1"])) as server,
        server.place() as place,
        connected(place) as client,
    ):
        import paramiko

        client.get_transport().open_session(timeout=PATIENCE)
        with pytest.raises(paramiko.ChannelException):
            client.get_transport().open_session(timeout=PATIENCE)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_an_agent_authenticates_by_the_keys_that_it_was_given(
    ssh_agent: Agent, make_ssh_key: Callable[..., Path], kind: str
) -> None:
    import paramiko

    key = make_ssh_key(kind)
    with started(lambda: OpenSSH(authorized=[key])) as server, server.place() as place:
        with (
            pytest.raises(paramiko.SSHException),
            connected(place, key_filename=None, allow_agent=True),
        ):
            pass
        ssh_agent.add(key)
        with connected(place, key_filename=None, allow_agent=True) as client:
            assert client.open_sftp().listdir(place.base) == []


def test_a_key_with_a_passphrase_opens_by_it_alone(make_ssh_key: Callable[..., Path]) -> None:
    import paramiko

    path = make_ssh_key("ed25519", "secret")
    public = path.with_name(f"{path.name}.pub").read_text().split()[1]
    assert paramiko.Ed25519Key.from_private_key_file(str(path), "secret").get_base64() == public
    with pytest.raises(paramiko.PasswordRequiredException):
        paramiko.Ed25519Key.from_private_key_file(str(path))
