"""SSH clients, ours and those of the peers, set up and tuned as their documentation says.

The server's files are this machine's, so all paths are absolute.
"""

from __future__ import annotations

import asyncio
import getpass
import shlex
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks import programs
from benchmarks.harness import Pass, Place, peer
from benchmarks.servers import KEY, KNOWN_HOSTS

if TYPE_CHECKING:
    from storage_backend import RemoteStorage

T = TypeVar("T")

HOST = "127.0.0.1"
AT_ONCE = 64  # of asyncssh
TRANSFERS = 16  # of rclone
CIPHER = "aes128-gcm@openssh.com"  # our default
SFTP_ONLY = {"shell": "never"}  # without it, ours probes for a shell


def key(place: Place) -> str:
    """The client's private key."""
    return str(place.root / "server" / KEY)


def known_hosts(place: Place) -> str:
    """The file with the server's key."""
    return str(place.root / "server" / KNOWN_HOSTS)


def port(place: Place) -> int:
    """The port of the server."""
    return int(place.endpoint.rpartition(":")[2])


def ours(place: Place, folder: Path, **settings: Any) -> RemoteStorage:
    """Our storage on that folder, connected."""
    from storage_backend import RemoteStorage

    return RemoteStorage(config(place, **settings), str(folder))


def config(place: Place, **settings: Any) -> Any:
    """Our `ssh_config`."""
    return {
        "user": getpass.getuser(),
        "endpoints": [[HOST, port(place)]],
        "key_filename": key(place),
        "known_hosts": known_hosts(place),
        "agent": False,
        **settings,
    }


def paramiko(place: Place, **connecting: Any) -> Any:
    """A connected SSHClient; *connecting* are further arguments of `connect`. Its `open_sftp()` returns an SFTP client."""
    client = peer("paramiko").SSHClient()
    client.load_host_keys(known_hosts(place))
    client.connect(HOST, **{**_connecting(place), **connecting})
    return client


def fsspec(place: Place) -> Any:
    """The file system of fsspec over SFTP, which is paramiko's; it takes absolute paths."""
    return peer("fsspec.implementations.sftp").SFTPFileSystem(HOST, **_connecting(place))


def smart_open(place: Place, path: Path, mode: str) -> Any:
    """A file of smart_open; the first one connects."""
    options = {name: value for name, value in _connecting(place).items() if name not in {"port", "username"}}
    address = f"sftp://{getpass.getuser()}@{HOST}:{port(place)}/{path}"
    return peer("smart_open").open(address, mode, transport_params={"connect_kwargs": options})


class AsyncSSH:
    """A connection of asyncssh, its SFTP client, and their event loop."""

    def __init__(self, place: Place) -> None:
        self.loop = asyncio.new_event_loop()
        self.connection = self.run(asyncssh_connect(place))
        self.sftp = self.run(self.connection.start_sftp_client())

    def run(self, work: Any) -> Any:
        """The result of the coroutine *work*."""
        return self.loop.run_until_complete(work)

    def all_of(self, operation: Callable[[T], Awaitable[object]], arguments: Iterable[T]) -> None:
        """*operation* of each argument, 64 at a time."""
        rest = iter(arguments)

        async def work() -> None:
            for argument in rest:
                await operation(argument)

        async def all_workers() -> None:
            await asyncio.gather(*(work() for _ in range(AT_ONCE)))

        self.run(all_workers())


def asyncssh_connect(place: Place) -> Any:
    """A coroutine that returns a connection of asyncssh."""
    return peer("asyncssh").connect(
        HOST,
        port(place),
        username=getpass.getuser(),
        client_keys=[key(place)],
        known_hosts=known_hosts(place),
        config=None,
        agent_path=None,
    )


def openssh(place: Place, program: str, *arguments: str) -> list[str]:
    """A command line of ssh, scp or sftp, without the user's configuration."""
    options = (
        f"IdentityFile={key(place)}",
        "IdentitiesOnly=yes",
        f"UserKnownHostsFile={known_hosts(place)}",
        "GlobalKnownHostsFile=/dev/null",
        "BatchMode=yes",
        "LogLevel=ERROR",
        f"Port={port(place)}",
    )
    return [program, "-F", "none", *(word for option in options for word in ("-o", option)), *arguments]


def remote(path: Path | str) -> str:
    """The argument of scp and rsync for *path* on the server."""
    return f"{getpass.getuser()}@{HOST}:{path}"


def ssh(place: Place, command: str, *options: str, before: str = "", after: str = "") -> Pass:
    """`ssh` that runs *command* on the server. *before* and *after* are shell text around it, for redirections."""
    line = shlex.join(openssh(place, "ssh", *options, f"{getpass.getuser()}@{HOST}", command))
    return programs.command(place, "bash", "-c", f"set -o pipefail; {before} {line} {after}")


def scp(place: Place, *arguments: str) -> Pass:
    """`scp` with these arguments."""
    return programs.command(place, *openssh(place, "scp", "-q", *arguments))


def sftp(place: Place, *lines: str) -> Pass:
    """`sftp` with these commands."""
    batch = place.scratch / "batch"
    batch.write_text("".join(f"{line}\n" for line in lines))
    return programs.command(
        place, *openssh(place, "sftp", "-q", "-b", str(batch), f"{getpass.getuser()}@{HOST}")
    )


def rsync(place: Place, *arguments: str) -> Pass:
    """`rsync` of whole files with their times, with these arguments."""
    return programs.command(place, "rsync", "-rtW", "-e", shlex.join(openssh(place, "ssh")), *arguments)


def rclone(place: Place, *arguments: str, shell: bool = True) -> Pass:
    """`rclone` with these arguments and 16 transfers (its own default is 4). Paths are "ssh:/path"."""
    return programs.rclone(
        place,
        "--transfers",
        str(TRANSFERS),
        "--checkers",
        str(TRANSFERS),
        *arguments,
        RCLONE_CONFIG_SSH_TYPE="sftp",
        RCLONE_CONFIG_SSH_HOST=HOST,
        RCLONE_CONFIG_SSH_PORT=str(port(place)),
        RCLONE_CONFIG_SSH_USER=getpass.getuser(),
        RCLONE_CONFIG_SSH_KEY_FILE=key(place),
        RCLONE_CONFIG_SSH_KNOWN_HOSTS_FILE=known_hosts(place),
        RCLONE_CONFIG_SSH_SHELL_TYPE="unix" if shell else "none",
    )


class BlackHole:
    """An address whose connections neither succeed nor fail, as if packets are dropped.

    Linux drops a SYN to a listener whose queue of connections is full (listen(2)).
    """

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._waiting = [socket.socket() for _ in range(4)]
        for one in self._waiting:
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect((HOST, self.port))


def _connecting(place: Place) -> dict[str, Any]:
    """Arguments of paramiko's `connect`."""
    return {
        "port": port(place),
        "username": getpass.getuser(),
        "key_filename": key(place),
        "allow_agent": False,
        "look_for_keys": False,
    }
