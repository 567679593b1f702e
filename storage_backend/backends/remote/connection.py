"""SSHConnection: an authenticated connection to one endpoint, with its SFTP session, shell and base directory."""

from __future__ import annotations

import functools
import logging
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from storage_backend.backends.remote import sftp_packets as packets
from storage_backend.backends.remote.commands import CommandError
from storage_backend.backends.remote.errors import ConnectionLostError, lost, translate_shell_error
from storage_backend.backends.remote.library import limited, ssh_library
from storage_backend.backends.remote.probe import LONGEST, FeatureCache, ShellFeatures
from storage_backend.backends.remote.remote_path import StagedUpload
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.backends.remote.sftp_client_session import AnySession, SFTPClientSession
from storage_backend.backends.remote.sftp_operations import SFTPOperations
from storage_backend.backends.remote.sftp_packets import NO_SUCH_FILE, SFTPProtocolError, StatusError, Steps
from storage_backend.backends.remote.sftp_session import SFTPSession
from storage_backend.backends.remote.shell import Shell
from storage_backend.backends.remote.tar_unpacker import TarMember, UnpackedFile, Unpacker
from storage_backend.errors import FATAL, AlreadyExistsError, ConfigurationError, StorageError
from storage_backend.info import Capability
from storage_backend.owners import temporary_name

if TYPE_CHECKING:
    import paramiko

logger = logging.getLogger(__name__)

T = TypeVar("T")

# OpenSSH allows ten sessions per connection (MaxSessions, sshd_config(5)): SFTP uses one; listings and digests need some.
MOST_TAR_COMMANDS = 4
# 64 GiB, OpenSSH's own limit for AES (RekeyLimit, ssh_config(5)). paramiko's is 512 MiB, and closing a channel
# during a rekey blocks its only thread for 30 s: seen with 5.1 at the end of downloads of exactly that size.
REKEY_BYTES = 1 << 36
REKEY_PACKETS = 1 << 31


@functools.cache
def feature_cache() -> FeatureCache:
    """The cache of this process: what the servers' shells can do."""
    return FeatureCache()


class SSHConnection:
    """An authenticated connection. Thread-safe.

    Args:
        client: connected and authenticated.
        endpoint: what the client is connected to.
        settings: of the backend.
        base_dir: the base directory as configured.
        where: the backend's location, for errors.

    Attributes:
        base: absolute path of the base directory on the server.
        base_exists: whether it existed when we connected.
        session: sends SFTP requests.
        operations: SFTP operations on files.
        users: number of callers that hold the connection.

    Raises:
        StorageError: the base directory cannot be reached.
        ConnectionLostError: the connection failed.
    """

    def __init__(
        self, client: paramiko.SSHClient, endpoint: Endpoint, settings: SSHSettings, base_dir: str, where: str
    ) -> None:
        self.endpoint = endpoint
        self._close_client: Callable[[], object] = client.close
        self._timeout = settings.io_timeout
        self._where = where
        self._process = os.getpid()
        self._transport = _transport(client)
        self._tar_slots = threading.BoundedSemaphore(MOST_TAR_COMMANDS)
        self._tar_works: dict[str, bool] = {}
        self._unpackers: list[Unpacker] = []  # idle
        self._features_lock = threading.Lock()
        self._features: ShellFeatures | None = None
        self._from_cache = False  # whether another connection probed the features
        uses_shell = self._transport is not None and settings.shell != "never"
        self._shell = Shell(self._command_channel, settings.io_timeout) if uses_shell else None
        # The client key is included: with it, authorized_keys may select another shell ("command=" in sshd(8)).
        host_key = b"" if self._transport is None else self._transport.get_remote_server_key().asbytes()
        self._server_key = (endpoint, settings.key_filename, host_key)
        self._can_link: bool | None = None
        self._users_lock = threading.Lock()
        self.users = 0
        self._retired = False
        if self._transport is None:
            self.session: AnySession = SFTPClientSession(client.open_sftp())
        else:
            self._configure(self._transport, settings)
            self.session = self._open_sftp(self._transport)
        self.base = self._resolve(base_dir)
        self.operations = SFTPOperations(
            self.session,
            self.base,
            where,
            move=self._move if self._by_shell("rename", packets.POSIX_RENAME) else None,
            link=self._link if self._by_shell("link", packets.HARDLINK) else None,
            non_atomic=settings.non_atomic_overwrite,
            warn=self._warn_of_gap,
        )

    @property
    def alive(self) -> bool:
        """Whether no failure was detected."""
        return self.session.failure is None and (self._transport is None or bool(self._transport.is_active()))

    @property
    def features(self) -> ShellFeatures:
        """What the server's shell can do; probed on first use."""
        with self._features_lock:
            if self._features is None:
                self._features = (
                    ShellFeatures() if self._shell is None else self._cached_or_probed(self._shell)
                )
            return self._features

    def _cached_or_probed(self, shell: Shell) -> ShellFeatures:
        features = feature_cache().get(self._server_key)
        self._from_cache = features is not None
        if features is None:
            features = shell.probe(None)
            feature_cache().put(self._server_key, features)
        shell.features = features
        return features

    def forget_features(self) -> None:
        """Discard cached features after a shell failure; probe again unless this connection already did."""
        feature_cache().forget(self._server_key)
        with self._features_lock:
            if self._from_cache:
                self._features = None

    def run(self, steps: Steps[T]) -> T:
        """Run one SFTP operation."""
        return self.session.run(steps)

    def describe(self) -> str:
        """Endpoint, base directory and shell features, as text for users."""
        exists = self.run(self.operations.entry(self.base)) is not None
        works = [name for name in ("find_names", "copy", "sync") if getattr(self.features, name)]
        works += ["sha256"] if "sha256" in self.features.digests else []
        shell = f"a shell with {', '.join(works)}" if works else "SFTP alone"
        return f"{self.endpoint}: {os.fsdecode(self.base)} {'exists' if exists else 'does not exist yet'}; {shell}"

    def capabilities(self) -> Capability:
        """What the server can do; probes the shell if necessary."""
        features = self.features
        flags = Capability.RANGES | Capability.DIRECTORIES
        if (packets.HARDLINK in self.session.extensions and self.can_link) or features.link:
            flags |= Capability.CREATE
        if self.operations.can_copy() or features.copy:
            flags |= Capability.SERVER_COPY
        if "sha256" in features.digests:
            flags |= Capability.CHECKSUM
        if features.sync:
            flags |= Capability.FLUSH
        return flags

    def hold(self) -> None:
        """Keep the connection open until `release`, even if another one is preferred."""
        with self._users_lock:
            self.users += 1

    def release(self) -> None:
        """End a `hold`."""
        if self._process != os.getpid():
            return  # in a forked child: a thread of the parent may have held the lock
        with self._users_lock:
            self.users -= 1
            done = self._retired and not self.users
        if done:
            self.close()

    def retire(self) -> None:
        """Close the connection as soon as no caller holds it."""
        with self._users_lock:
            self._retired = True
            done = not self.users
        if done:
            self.close()

    def may_use_tar(self, feature: Literal["pack", "unpack"]) -> bool:
        """Whether to try the server's tar: there is a shell, the needed rename exists, and no earlier try failed."""
        can_rename = feature == "pack" or packets.POSIX_RENAME in self.session.extensions
        return self._shell is not None and can_rename and self._tar_works.get(feature, True)

    def pack(self, names: Sequence[bytes], limit: int) -> list[bytes | None] | None:
        """Read many small files with the server's tar, as `Shell.pack`; None if that fails."""
        return self._try_tar("pack", lambda shell, _: shell.pack(self.base, names, limit))

    def unpack(
        self, members: Sequence[TarMember], *, dated: bool, digests: bool
    ) -> Sequence[UnpackedFile] | None:
        """Write many small files with the server's tar, all or none; None if that fails.

        Args:
            members: files with paths relative to the base directory.
            dated: whether to set their modification times.
            digests: whether to compute their SHA-256; the first call does so in any case, to prove that tar works.
        """
        listing = self.operations.temporary + b"list" + os.urandom(6).hex().encode()

        def unpack(shell: Shell, first: bool) -> Sequence[UnpackedFile]:
            with self._unpacker(shell) as unpacker:
                return unpacker.unpack(members, listing, dated=dated, digests=digests or first)

        found = self._try_tar("unpack", unpack)
        if found is None:
            for path in (listing, listing + b"+", *(member.path for member in members)):
                self.session.post(packets.request(packets.REMOVE, posixpath.join(self.base, path)))
        return found

    @contextmanager
    def _unpacker(self, shell: Shell) -> Iterator[Unpacker]:
        """An idle command or a new one: running an account's start-up files may take longer than the work."""
        unpacker = None
        with suppress(IndexError):
            unpacker = self._unpackers.pop()
        # Servers may end an idle session (ChannelTimeout, sshd_config(5)).
        if unpacker is None or unpacker.command.ended:
            unpacker = shell.unpacker(self.base)
        unpacker.command.io_timeout = shell.io_timeout
        try:
            yield unpacker
        finally:
            if unpacker.waits:
                self._unpackers.append(unpacker)
            else:
                unpacker.command.close()

    def _try_tar(self, feature: Literal["pack", "unpack"], work: Callable[[Shell, bool], T]) -> T | None:
        """Call *work* with a shell and whether this is the first try; None if the shell fails.

        The first try is made without a probe, which takes as long as thousands of files; only if it fails is the shell probed.
        """
        if not self.may_use_tar(feature):
            return None
        first = feature not in self._tar_works
        # A hanging shell must time out as soon as it would in the probe.
        shell = Shell(self._command_channel, min(self._timeout, LONGEST) if first else self._timeout)
        try:
            with self._tar_slots, self._shell_errors(None):
                found = work(shell, first)
        except FATAL:
            raise
        except (StorageError, ConnectionLostError) as error:
            if first:
                self._tar_works[feature] = getattr(self.features, feature)
            elif isinstance(error, ConnectionLostError):
                raise
            # A file or its directory failed; SFTP, file by file, tells which.
            logger.info("%s: file by file instead of by tar: %s", self._where, error)
            return None
        self._tar_works[feature] = True
        return found

    @contextmanager
    def command(self, identifier: str | None = None) -> Iterator[Shell]:
        """The shell; translates its errors into a StorageError or a ConnectionLostError."""
        assert self._shell is not None
        with self._shell_errors(identifier):
            yield self._shell

    @contextmanager
    def _shell_errors(self, identifier: str | None) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            refused = isinstance(error, ssh_library().ChannelException)
            if not refused and getattr(error, "errno", None) is None:
                self.forget_features()
            # The server refused another channel or printed invalid output: the connection still works.
            if refused or isinstance(error, ValueError):
                raise translate_shell_error(error, identifier, self._where) from error
            if isinstance(error, EOFError | TimeoutError | ConnectionError | ssh_library().SSHException):
                raise lost(error) from error
            # paramiko raises an OSError without an errno for a closed channel.
            if isinstance(error, OSError) and error.errno is None:
                raise lost(error) from error
            if isinstance(error, OSError | CommandError):
                raise translate_shell_error(error, identifier, self._where) from error
            raise

    def close_handle(self, handle: bytes) -> None:
        """Close a file handle, unless the connection failed or belongs to the parent process."""
        if self._process == os.getpid() and self.session.failure is None:
            self.operations.close(handle)

    def discard(self, staged: StagedUpload) -> None:
        """Remove a staged file, unless the connection failed or belongs to the parent process."""
        if self._process == os.getpid() and self.session.failure is None:
            self.operations.discard(staged)

    def close(self) -> None:
        """Close the connection; in a forked child, only the child's copy of the socket."""
        if self._process != os.getpid():
            self.abandon()
            return
        with suppress(Exception):
            self.session.close()
        with suppress(Exception):
            self._close_client()

    def on_close(self, close_client: Callable[[], object]) -> None:
        """Set the callback that closes the client, jump hosts and proxy commands."""
        self._close_client = close_client

    def abandon(self) -> None:
        """Close this process's copy of the socket without sending anything: the connection is the parent's."""
        with suppress(Exception):
            # close(2) of a socket sends nothing while another process has it open.
            assert self._transport is not None
            os.close(self._transport.sock.detach())

    # Setup

    def _configure(self, transport: paramiko.Transport, settings: SSHSettings) -> None:
        if settings.keepalive:
            transport.set_keepalive(max(1, round(settings.keepalive)))
        packetizer = getattr(transport, "packetizer", None)
        if packetizer is not None:
            packetizer.REKEY_BYTES = REKEY_BYTES
            packetizer.REKEY_PACKETS = REKEY_PACKETS

    def _open_sftp(self, transport: paramiko.Transport) -> SFTPSession:
        try:
            channel = _sftp_channel(transport, self._timeout)
        except Exception as error:
            raise StorageError(f"cannot start SFTP: {error}", backend=self._where, retryable=True) from error
        # Only OpenSSH is known to run a process per session; elsewhere a blocked session may block the second one.
        process_per_session = "OpenSSH" in str(transport.remote_version)
        return SFTPSession(channel, partial(_open_pipe, transport) if process_per_session else None)

    def _command_channel(self) -> paramiko.Channel:
        assert self._transport is not None
        return self._transport.open_session(timeout=self._timeout)

    def _resolve(self, base_dir: str) -> bytes:
        """The absolute path of the base directory."""
        path = os.fsencode(base_dir)
        if path == b"~" or path.startswith(b"~/"):
            path = path[2:]
        elif path.startswith(b"~"):
            raise ConfigurationError(
                f"remote_base_dir: {base_dir!r}: only ~ is expanded, not ~user",
                parameter="remote_base_dir",
            )
        if not path.startswith(b"/"):
            path = posixpath.join(self.run(_real_path(b".")), path)
        path = path.rstrip(b"/") or b"/"
        found = self.run(_stat(path))
        self.base_exists = found is not None
        if found is not None and found.mode is not None and not stat.S_ISDIR(found.mode):
            raise ConfigurationError(
                f"remote_base_dir: {base_dir!r} is not a directory", parameter="remote_base_dir"
            )
        return path

    # Operations that may need the shell

    @property
    def can_link(self) -> bool:
        """Whether the server makes hard links by SFTP. Some announce the extension but refuse; linking a missing file tells."""
        with self._features_lock:
            if self._can_link is None:
                self._can_link = self.run(_try_link(self.base))
            return self._can_link

    def _by_shell(self, feature: str, extension: bytes) -> bool:
        """Whether the operation is missing from SFTP and present in the shell."""
        return extension not in self.session.extensions and bool(getattr(self.features, feature))

    def _move(self, old: bytes, new: bytes) -> None:
        with self.command() as shell:
            try:
                shell.rename(old, new)
            except FileNotFoundError as error:
                # The directory may be missing; callers create it then.
                raise StatusError(NO_SUCH_FILE, str(error)) from error

    def _warn_of_gap(self) -> None:
        if feature_cache().first_warning(self.endpoint):
            logger.warning(
                "%s: the server at %s cannot replace a file atomically: during an overwrite the object is missing for a moment; "
                'set ssh_config["non_atomic_overwrite"] = False to refuse such writes',
                self._where,
                self.endpoint,
            )

    def _link(self, old: bytes, new: bytes) -> bool:
        try:
            with self.command() as shell:
                shell.link(old, new)
        except AlreadyExistsError:
            return False
        return True


def _transport(client: paramiko.SSHClient) -> paramiko.Transport | None:
    """The client's transport, if it is paramiko's; None for a mock."""
    get = getattr(client, "get_transport", None)
    transport = get() if callable(get) else None
    return transport if isinstance(transport, ssh_library().Transport) else None


def _sftp_channel(transport: paramiko.Transport, seconds: float) -> paramiko.Channel:
    """A channel running the SFTP subsystem; *seconds* is the timeout of each step and of later receives and sends."""
    channel = transport.open_session(timeout=seconds)
    channel.settimeout(seconds)
    with limited(seconds, channel.close):
        channel.invoke_subsystem("sftp")
    return channel


def _open_pipe(transport: paramiko.Transport, path: bytes, blocked: Callable[[], bool]) -> None:
    """Open a pipe for writing and close it, which unblocks the session that opens it for reading."""
    session = SFTPSession(_sftp_channel(transport, LONGEST))
    try:
        if blocked():
            session.run(_open_and_close(path))
    finally:
        session.close()


def _open_and_close(path: bytes) -> Steps[None]:
    (reply,) = yield [packets.open_request(path, packets.FXF_WRITE)]
    yield [packets.request(packets.CLOSE, packets.handle_in(reply))]


def _real_path(path: bytes) -> Steps[bytes]:
    (reply,) = yield [packets.request(packets.REALPATH, path)]
    entries = packets.entries_in(reply)
    if len(entries) != 1 or not entries[0].name or b"\0" in entries[0].name:
        raise SFTPProtocolError("the SFTP server sent no path for the home directory")
    return entries[0].name


def _stat(path: bytes) -> Steps[packets.Attributes | None]:
    (reply,) = yield [packets.request(packets.STAT, path)]
    try:
        return packets.attributes_in(reply)
    except StatusError as error:
        if error.code == NO_SUCH_FILE:
            return None
        raise


def _try_link(base: bytes) -> Steps[bool]:
    name = posixpath.join(base, temporary_name().encode())
    (reply,) = yield [packets.extended_request(packets.HARDLINK, name, name + b"-")]
    try:
        packets.check(reply)
    except StatusError as error:
        return error.code != packets.UNSUPPORTED
    return True
