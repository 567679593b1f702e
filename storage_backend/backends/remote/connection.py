"""SSHConnection: a connection to one endpoint that has logged in, with its SFTP session, its shell and the base directory."""

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

# OpenSSH allows ten sessions of a connection (MaxSessions, sshd_config(5)): one is SFTP's, and listings and digests need some.
MOST_TAR_COMMANDS = 4
# 64 GiB, OpenSSH's own limit for AES (RekeyLimit, ssh_config(5)). paramiko's is 512 MiB, and a channel that is closed
# while it negotiates holds its only thread for 30 s: seen with 5.1 at the end of downloads of just that size.
REKEY_BYTES = 1 << 36
REKEY_PACKETS = 1 << 31


@functools.cache
def feature_cache() -> FeatureCache:
    """This process's: what the shells of its servers can do."""
    return FeatureCache()


class SSHConnection:
    """A live connection. Threads may share it.

    Args:
        client: connected and authenticated.
        endpoint: where to.
        settings: of the backend.
        base_dir: the base directory as it was configured.
        where: the backend's location, for errors.

    Attributes:
        endpoint: as given.
        base: the base directory on the server, absolute.
        base_exists: whether it existed when we connected.
        session: sends SFTP requests.
        operations: operations on files.
        users: number of callers that hold it.

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
        self._from_cache = False  # whether the features were found out by another connection
        self._shell = Shell(self._command_channel, settings.io_timeout) if self._transport else None
        if settings.shell == "never":
            self._shell = None
        # The account's shell may depend on the key (authorized_keys in sshd(8), "command=").
        self._server_key = (endpoint, settings.key_filename, _host_key(self._transport))
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
        """Whether nothing has been seen to fail."""
        return self.session.failure is None and (self._transport is None or bool(self._transport.is_active()))

    @property
    def features(self) -> ShellFeatures:
        """What the server's shell can do; found out when first needed."""
        with self._features_lock:
            if self._features is None:
                self._features = self._found_out(self._shell) if self._shell is not None else ShellFeatures()
            return self._features

    def _found_out(self, shell: Shell) -> ShellFeatures:
        known = feature_cache().get(self._server_key)
        self._from_cache = known is not None
        if known is None:
            known = shell.probe(None)
            feature_cache().put(self._server_key, known)
        shell.features = known
        return known

    def forget_features(self) -> None:
        """The shell failed: forget what is known of it; this connection probes again if it has not done so itself."""
        feature_cache().forget(self._server_key)
        with self._features_lock:
            if self._from_cache:
                self._features = None

    def run(self, steps: Steps[T]) -> T:
        """Carry out one SFTP operation."""
        return self.session.run(steps)

    def describe(self) -> str:
        """Endpoint, base directory and the shell's abilities, for people."""
        exists = self.run(self.operations.entry(self.base)) is not None
        works = [name for name in ("find_names", "copy", "sync") if getattr(self.features, name)]
        works += ["sha256"] if "sha256" in self.features.digests else []
        shell = f"a shell with {', '.join(works)}" if works else "SFTP alone"
        return f"{self.endpoint}: {os.fsdecode(self.base)} {'is there' if exists else 'does not exist yet'}; {shell}"

    def capabilities(self) -> Capability:
        """What the server can do; the shell is probed if need be."""
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
            return  # a thread of the parent process may hold the lock for ever
        with self._users_lock:
            self.users -= 1
            done = self._retired and not self.users
        if done:
            self.close()

    def retire(self) -> None:
        """Close the connection once nobody holds it."""
        with self._users_lock:
            self._retired = True
            done = not self.users
        if done:
            self.close()

    def may_use_tar(self, feature: Literal["pack", "unpack"]) -> bool:
        """Whether the server's tar may be tried: it has not failed before."""
        renames = feature == "pack" or packets.POSIX_RENAME in self.session.extensions
        return self._shell is not None and renames and self._tar_works.get(feature, True)

    def pack(self, names: Sequence[bytes], limit: int) -> list[bytes | None] | None:
        """Read many small files by the server's tar, as `Shell.pack`; None if it fails."""
        return self._try_tar("pack", lambda shell, _: shell.pack(self.base, names, limit))

    def unpack(
        self, members: Sequence[TarMember], *, dated: bool, digests: bool
    ) -> Sequence[UnpackedFile] | None:
        """Write many small files by the server's tar; None if it fails, and then none of them is there.

        Args:
            members: their paths are relative to the base directory.
            dated: whether their modification times are kept.
            digests: whether their SHA-256 is wanted; the first time they are computed in any case, as proof.
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
        """An idle command, or a new one: an account's start-up files may take longer than all else."""
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
        """Call *work*; None if the server's shell fails.

        The first time nothing is known of the server, and a probe takes as long as thousands of files. So *work* is told that
        it is the first time, and the shell is probed only if it fails.
        """
        if not self.may_use_tar(feature):
            return None
        first = feature not in self._tar_works
        # A shell that hangs is given up as soon as the probe would do so.
        shell = Shell(self._command_channel, min(self._timeout, LONGEST) if first else self._timeout)
        try:
            with self._tar_slots, self.command():
                found = work(shell, first)
        except FATAL:
            raise
        except (StorageError, ConnectionLostError) as error:
            if first:
                self._tar_works[feature] = getattr(self.features, feature)
            elif isinstance(error, ConnectionLostError):
                raise
            # One of many files failed, or its directory: file by file, SFTP tells which.
            logger.info("%s: file by file instead of by tar: %s", self._where, error)
            return None
        self._tar_works[feature] = True
        return found

    @contextmanager
    def command(self, identifier: str | None = None) -> Iterator[Shell]:
        """The shell, for the body; its failures become our errors, or a ConnectionLostError."""
        assert self._shell is not None
        try:
            yield self._shell
        except StorageError:
            raise
        except Exception as error:
            refused = isinstance(error, ssh_library().ChannelException)
            if not refused and getattr(error, "errno", None) is None:
                self.forget_features()
            # The server refuses one channel too many, or printed what makes no sense: the connection still works.
            if refused or isinstance(error, ValueError):
                raise translate_shell_error(error, identifier, self._where) from error
            if isinstance(error, EOFError | TimeoutError | ConnectionError | ssh_library().SSHException):
                raise lost(error) from error
            # paramiko raises a plain OSError without a number for a closed channel.
            if isinstance(error, OSError) and error.errno is None:
                raise lost(error) from error
            if isinstance(error, OSError | CommandError):
                raise translate_shell_error(error, identifier, self._where) from error
            raise

    def close_handle(self, handle: bytes) -> None:
        """Close a handle, if the connection is usable and not the parent process's."""
        if self._process == os.getpid() and self.session.failure is None:
            self.operations.close(handle)

    def discard(self, staged: StagedUpload) -> None:
        """Remove a staged file, if the connection is usable and not the parent process's."""
        if self._process == os.getpid() and self.session.failure is None:
            self.operations.discard(staged)

    def close(self) -> None:
        """Close the connection; in a forked child, only the child's copy of the descriptor."""
        if self._process != os.getpid():
            self.abandon()
            return
        with suppress(Exception):
            self.session.close()
        with suppress(Exception):
            self._close_client()

    def on_close(self, end: Callable[[], object]) -> None:
        """Have *end* close the client, with its jump hosts and programs."""
        self._close_client = end

    def abandon(self) -> None:
        """Close this process's copy of the descriptor, and send nothing: the connection is the parent process's."""
        with suppress(Exception):
            # close(2) of a socket sends nothing while another process has it open.
            assert self._transport is not None
            os.close(self._transport.sock.detach())

    # Connecting

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
            raise StorageError(f"no SFTP: {error}", backend=self._where, retryable=True) from error
        # Other servers may have one process or thread for all sessions: a blocked one would block the second session too.
        process_per_session = "OpenSSH" in str(transport.remote_version)
        return SFTPSession(channel, partial(_open_pipe, transport) if process_per_session else None)

    def _command_channel(self) -> paramiko.Channel:
        assert self._transport is not None
        return self._transport.open_session(timeout=self._timeout)

    def _resolve(self, base_dir: str) -> bytes:
        """The base directory as an absolute path."""
        path = os.fsencode(base_dir)
        if path == b"~" or path.startswith(b"~/"):
            path = path[2:]
        elif path.startswith(b"~"):
            raise ConfigurationError(
                f"remote_base_dir: {base_dir!r}: only ~ itself is expanded, not another user's",
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

    @property
    def can_link(self) -> bool:
        """Whether the server makes hard links by SFTP. Some announce them and refuse; linking a name that does not exist tells."""
        with self._features_lock:
            if self._can_link is None:
                self._can_link = self.run(_try_link(self.base))
            return self._can_link

    def _by_shell(self, feature: str, extension: bytes) -> bool:
        """Whether SFTP lacks an operation that the shell has."""
        return extension not in self.session.extensions and bool(getattr(self.features, feature))

    def _move(self, old: bytes, new: bytes) -> None:
        with self.command() as shell:
            try:
                shell.rename(old, new)
            except FileNotFoundError as error:
                # The directory may be missing; callers make it then.
                raise StatusError(NO_SUCH_FILE, str(error)) from error

    def _warn_of_gap(self) -> None:
        if feature_cache().first_warning(self.endpoint):
            logger.warning(
                "%s: the server at %s cannot replace a file in one step, so while an object is overwritten there is for a "
                'moment neither the old nor the new one; ssh_config["non_atomic_overwrite"] = False refuses that',
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
    """A channel with the subsystem started; *seconds* limits each step, and each receive and send later."""
    channel = transport.open_session(timeout=seconds)
    channel.settimeout(seconds)
    with limited(seconds, channel.close):
        channel.invoke_subsystem("sftp")
    return channel


def _open_pipe(transport: paramiko.Transport, path: bytes, blocked: Callable[[], bool]) -> None:
    """Open a pipe for writing, and close it: that unblocks the session which opens it for reading."""
    session = SFTPSession(_sftp_channel(transport, LONGEST))
    try:
        if blocked():
            session.run(_open_and_close(path))
    finally:
        session.close()


def _open_and_close(path: bytes) -> Steps[None]:
    (reply,) = yield [packets.open_request(path, packets.FXF_WRITE)]
    yield [packets.request(packets.CLOSE, packets.handle_in(reply))]


def _host_key(transport: paramiko.Transport | None) -> bytes:
    return b"" if transport is None else bytes(transport.get_remote_server_key().asbytes())


def _real_path(path: bytes) -> Steps[bytes]:
    (reply,) = yield [packets.request(packets.REALPATH, path)]
    entries = packets.entries_in(reply)
    if len(entries) != 1 or not entries[0].name or b"\0" in entries[0].name:
        raise SFTPProtocolError("the SFTP server does not say where its home directory is")
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
