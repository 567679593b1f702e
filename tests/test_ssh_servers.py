"""The SSH servers of the tests do what their docstrings say, as a plain client sees them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.servers import PATIENCE

pytest.importorskip("paramiko")

if TYPE_CHECKING:
    import paramiko

    from tests.ssh_servers import SSHPlace


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
