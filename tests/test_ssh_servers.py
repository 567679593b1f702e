"""The SSH servers of the tests do what their docstrings say, as a plain client sees them."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from storage_backend.testing.subject import same
from tests.conftest import unavailable
from tests.servers import PATIENCE, ServerUnavailableError
from tests.ssh_servers import AsyncSSH, OpenSSH, ParamikoSFTP, RcloneSFTP, SSHServer, make_key

pytest.importorskip("paramiko")

if TYPE_CHECKING:
    import paramiko

    from tests.ssh_servers import SSHPlace

Server = TypeVar("Server", bound=SSHServer)


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
    return output.channel.recv_exit_status(), output.read(), errors.read()


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
        assert sorted(sftp.listdir(place.base)) == ["a", "b"]
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
