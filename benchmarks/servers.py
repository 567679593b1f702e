"""Servers on 127.0.0.1 for workloads, a new one for each measured process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from benchmarks import relay
from benchmarks.finding import find_program

ACCESS_KEY = "BENCHMARKSKEY"
SECRET_KEY = "benchmarks-secret"  # noqa: S105 - of a server that lives for seconds and listens on 127.0.0.1
REGION = "us-east-1"
KEY = "client"
KNOWN_HOSTS = "known_hosts"
HOST_KEY = "host"
PATIENCE = 30.0  # seconds for a server to come up or go down


class ServerError(Exception):
    """A server did not start; the message says why."""


@dataclass(frozen=True)
class Server:
    """A server program that shows each directory beneath a root as a bucket.

    Attributes:
        program: its name; without the program the workload is left out.
        command: its command line, from the program's path, the root, an empty folder, and the port.
    """

    program: str
    command: Callable[[str, Path, Path, int], Sequence[str]]

    @property
    def path(self) -> str | None:
        """The path of the program. Debian installs nginx outside of users' PATH."""
        return find_program(self.program) or shutil.which(self.program, path="/usr/sbin:/usr/local/sbin")

    @contextmanager
    def running(self, root: Path, folder: Path) -> Iterator[str]:
        """Start it, give its URL, and stop it.

        Raises:
            ServerError: it does not start.
        """
        port = _free_port()
        folder.mkdir()
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                self.command(self.path or self.program, root, folder, port),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=folder,
                # Without variables that lead to an account or a user's settings.
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "TMPDIR": str(folder)},
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while not _accepts(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServerError(
                        f"{self.program} does not start: {log.read_text(errors='replace')[-500:]}"
                    )
                time.sleep(0.01)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class SSHServer(Server):
    """OpenSSH's sshd, for the account that starts it; `KEY` and `KNOWN_HOSTS` are in its folder.

    Attributes:
        round_trip: seconds that a relay in between adds to each round trip; 0 for none.
    """

    round_trip: float = 0.0

    @override
    @contextmanager
    def running(self, root: Path, folder: Path) -> Iterator[str]:
        with super().running(root, folder) as url:
            _, _, port = url.rpartition(":")
            known = folder / KNOWN_HOSTS
            key = (folder / f"{HOST_KEY}.pub").read_text()
            if not self.round_trip:
                known.write_text(f"[127.0.0.1]:{port} {key}")
                yield f"ssh://127.0.0.1:{port}"
                return
            relayed = Server(
                sys.executable,
                lambda program, _root, _folder, other: [
                    program,
                    relay.__file__,
                    str(other),
                    port,
                    str(self.round_trip / 2),
                ],
            )
            with relayed.running(root, folder / "relay") as there:
                _, _, other = there.rpartition(":")
                known.write_text(f"[127.0.0.1]:{other} {key}")
                yield f"ssh://127.0.0.1:{other}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _rclone(program: str, root: Path, folder: Path, port: int) -> Sequence[str]:
    return [
        program,
        "serve",
        "s3",
        f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
        f"--addr=127.0.0.1:{port}",
        # To compute an ETag, it would read and hash the file on each request, and so dominate the times.
        "--etag-hash=",
        "--config=",
        f"--cache-dir={folder / 'cache'}",
        str(root),
    ]


def _nginx(program: str, root: Path, folder: Path, port: int) -> Sequence[str]:
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(root=root, folder=folder, port=port))
    return [program, "-p", str(folder), "-e", str(folder / "log"), "-c", str(configuration)]


_SFTP_SERVERS = (  # Debian, Fedora, the BSDs and macOS, Arch and SUSE
    "/usr/lib/openssh/sftp-server",
    "/usr/libexec/openssh/sftp-server",
    "/usr/libexec/sftp-server",
    "/usr/lib/ssh/sftp-server",
)


def _openssh(program: str, _root: Path, folder: Path, port: int) -> Sequence[str]:
    found = next((path for path in _SFTP_SERVERS if os.path.exists(path)), "internal-sftp")
    return _sshd(program, folder, port, f"Subsystem sftp {found}")


def _openssh_sftp_only(program: str, _root: Path, folder: Path, port: int) -> Sequence[str]:
    return _sshd(program, folder, port, "Subsystem sftp internal-sftp", "ForceCommand internal-sftp")


def _sshd(program: str, folder: Path, port: int, *lines: str) -> Sequence[str]:
    for name in (KEY, HOST_KEY):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "benchmarks", "-f", str(folder / name)],  # noqa: S607 - of the user's OpenSSH, wherever that is
            check=True,
            stdin=subprocess.DEVNULL,
        )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Debian's place for privilege separation
    configuration = folder / "sshd_config"
    configuration.write_text(
        "\n".join(
            (
                f"ListenAddress 127.0.0.1:{port}",
                f"HostKey {folder / HOST_KEY}",
                f"AuthorizedKeysFile {folder / KEY}.pub",
                "AuthenticationMethods publickey",
                "PermitRootLogin yes",
                "StrictModes no",
                "UsePAM no",
                "UseDNS no",
                "PidFile none",
                "PrintMotd no",
                "MaxSessions 1000",
                "MaxStartups 1000",
                # bash would read the user's start-up files for each command, which may take longer than all else.
                f"SetEnv HOME={folder}",
                *lines,
                "",
            )
        )
    )
    return [program, "-D", "-e", "-f", str(configuration)]


# One process of the starting user: as root, a worker would run as "nobody", who cannot read a folder of mkdtemp.
_CONFIGURATION = """\
daemon off;
master_process off;
pid {folder}/pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000000;
    open_file_cache max=20000 inactive=600s;
    open_file_cache_valid 600s;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    map $args $page {{
        default 0;
        "~(?:^|&)continuation-token=([0-9]+)" $1;
    }}
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location ~ "^/(?<bucket>pages-[0-9]+)/?$" {{
            default_type application/xml;
            rewrite "^" /shared/$bucket/$page break;
        }}
    }}
}}
"""

RCLONE = Server("rclone", _rclone)
"""`rclone serve s3`: a complete server, slower than the fastest clients."""

NGINX = Server("nginx", _nginx)
"""Files as objects, GET and HEAD only, without authentication: so fast that the clients dominate the times.

A bucket `pages-N`, of the workload `s3-list`, lists its objects page by page.
"""

OPENSSH = SSHServer("sshd", _openssh)
"""A server as configured by Debian: a shell, and SFTP by a separate program."""

OPENSSH_20_MS = SSHServer("sshd", _openssh, round_trip=0.02)
"""The same, with a round-trip time of 20 ms."""

OPENSSH_SFTP_ONLY = SSHServer("sshd", _openssh_sftp_only)
"""SFTP within sshd, without a shell."""
