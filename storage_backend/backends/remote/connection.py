"""SSHConnection: one authenticated connection to one endpoint, with its SFTP session, its shell and its base directory."""

from __future__ import annotations

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
from storage_backend.backends.remote.errors import ConnectionLostError, lost, told
from storage_backend.backends.remote.library import ssh_library
from storage_backend.backends.remote.probe import LONGEST, FeatureCache, ShellFeatures
from storage_backend.backends.remote.settings import Endpoint, SSHSettings
from storage_backend.backends.remote.sftp_client_session import SFTPClientSession
from storage_backend.backends.remote.sftp_operations import Operations, RemotePath, StagedUpload
from storage_backend.backends.remote.sftp_packets import NO_SUCH_FILE, SFTPProtocolError, StatusError
from storage_backend.backends.remote.sftp_session import SFTPSession, Steps
from storage_backend.backends.remote.shell import Shell
from storage_backend.backends.remote.tar_unpacker import TarMember, UnpackedFile, Unpacker
from storage_backend.errors import FATAL, AlreadyExistsError, ConfigurationError, StorageError
from storage_backend.owners import temporary_name

if TYPE_CHECKING:
    import paramiko

logger = logging.getLogger(__name__)

T = TypeVar("T")

# OpenSSH gives a connection ten sessions (sshd_config(5), MaxSessions): one is SFTP's, and listings and digests need theirs.
BULK = 4
# 64 GiB, OpenSSH's own limit for AES (RekeyLimit, ssh_config(5)). paramiko's is 512 MiB, and a channel that is closed
# while it negotiates holds its only thread for 30 s: seen with 5.1 at the end of downloads of just that size.
REKEY_BYTES = 1 << 36
REKEY_PACKETS = 1 << 31

memory = FeatureCache()


class SSHConnection:
    """A live connection. Used by many threads at once.

    Args:
        client: connected and authenticated.
        endpoint: that it leads to.
        settings: of the backend.
        base_dir: the base directory as it was configured.
        where: the backend's location, for errors.

    Attributes:
        endpoint: as given.
        base: the base directory on the server, absolute.
        base_exists: whether it was there at the beginning.
        session: of SFTP.
        operations: what is done to files.

    Raises:
        StorageError: the base directory cannot be reached.
        ConnectionLostError: the connection failed.
    """

    def __init__(
        self, client: paramiko.SSHClient, endpoint: Endpoint, settings: SSHSettings, base_dir: str, where: str
    ) -> None:
        self.endpoint = endpoint
        self._end: Callable[[], object] = client.close
        self._timeout = settings.io_timeout
        self._where = where
        self._process = os.getpid()
        self._transport = _transport(client)
        self._bulk = threading.BoundedSemaphore(BULK)
        self._able: dict[str, bool] = {}
        self._unpackers: list[Unpacker] = []  # idle
        self._probing = threading.Lock()
        self._facts: ShellFeatures | None = None
        self._remembered = False  # the facts are another connection's
        self._shell = Shell(self._command_channel, settings.io_timeout) if self._transport else None
        if settings.shell == "never":
            self._shell = None
        # The account's shell may depend on the key (authorized_keys in sshd(8), "command=").
        self._server = (endpoint, settings.key_filename, _host_key(self._transport))
        self._links: bool | None = None
        self._counting = threading.Lock()
        self._users = 0
        self._retired = False
        if self._transport is None:
            self.session: SFTPSession | SFTPClientSession = SFTPClientSession(client.open_sftp())
        else:
            self._prepare(self._transport, settings)
            self.session = self._sftp(self._transport)
        self.base = self._resolved(base_dir)
        self.operations = Operations(
            self.session,
            where,
            move=self._move if self._may("rename", packets.POSIX_RENAME) else None,
            link=self._link if self._may("link", packets.HARDLINK) else None,
            non_atomic=settings.non_atomic_overwrite,
            warn=self._warn_of_gap,
        )

    @property
    def alive(self) -> bool:
        """Whether nothing has been seen to fail."""
        return self.session.failure is None and (self._transport is None or bool(self._transport.is_active()))

    @property
    def facts(self) -> ShellFeatures:
        """What the server's shell can do; found out when first asked for."""
        with self._probing:
            if self._facts is None:
                self._facts = self._learned(self._shell) if self._shell is not None else ShellFeatures()
            return self._facts

    def _learned(self, shell: Shell) -> ShellFeatures:
        known = memory.get(self._server)
        self._remembered = known is not None
        if known is None:
            known = shell.probe(None)
            memory.put(self._server, known)
        shell.facts = known
        return known

    def doubt(self) -> None:
        """The shell did not do as it should: what another connection found is asked again, by this one too."""
        memory.forget(self._server)
        with self._probing:
            if self._remembered:
                self._facts = None

    @property
    def shell(self) -> Shell:
        """The server's shell; to be used for what `facts` has."""
        assert self._shell is not None
        return self._shell

    def run(self, steps: Steps[T]) -> T:
        """Carry out one operation on files."""
        return self.session.run(steps)

    def at(self, place: RemotePath) -> RemotePath:
        """A place relative to the base directory as an absolute one; one that is absolute stays as it is."""
        return RemotePath(place.identifier, posixpath.join(self.base, place.path))

    def described_shell(self) -> str:
        """What there is beside SFTP, for people."""
        able = [name for name in ("find_names", "copy", "sync") if getattr(self.facts, name)]
        able += ["sha256"] if "sha256" in self.facts.digests else []
        return f"a shell with {', '.join(able)}" if able else "SFTP alone"

    @property
    def users(self) -> int:
        """How many hold it."""
        return self._users

    def hold(self) -> None:
        """Keep the connection open until `release`, even if another is preferred by now."""
        with self._counting:
            self._users += 1

    def release(self) -> None:
        """The end of a `hold`."""
        if self._process != os.getpid():
            return  # a thread of the parent's may have had the lock
        with self._counting:
            self._users -= 1
            done = self._retired and not self._users
        if done:
            self.close()

    def retire(self) -> None:
        """Close the connection once nobody holds it."""
        with self._counting:
            self._retired = True
            done = not self._users
        if done:
            self.close()

    def may(self, fact: Literal["pack", "unpack"]) -> bool:
        """Whether it is worth a try: nothing is known yet that speaks against it."""
        renames = fact == "pack" or packets.POSIX_RENAME in self.session.extensions
        return self._shell is not None and renames and self._able.get(fact, True)

    def pack(self, names: Sequence[bytes], limit: int) -> list[bytes | None] | None:
        """The contents of many small files by the server's tar, as `Shell.pack` gives them; None too if it does not."""
        return self._tried("pack", lambda shell, _: shell.pack(self.base, names, limit))

    def unpack(
        self, members: Sequence[TarMember], *, dated: bool, digests: bool
    ) -> Sequence[UnpackedFile] | None:
        """Write many small files by the server's tar; None if it does not, and then none of them is there.

        Args:
            members: their paths are relative to the base directory.
            dated: whether their times are kept.
            digests: whether their SHA-256 is wanted; they come in any case the first time, as proof.
        """
        listing = self.operations.temporary + b"list" + os.urandom(6).hex().encode()

        def unpack(shell: Shell, first: bool) -> Sequence[UnpackedFile]:
            with self._unpacker(shell) as unpacker:
                return unpacker.unpack(members, listing, dated=dated, digests=digests or first)

        found = self._tried("unpack", unpack)
        if found is None:
            for path in (listing, listing + b"+", *(member.path for member in members)):
                self.session.post(packets.request(packets.REMOVE, posixpath.join(self.base, path)))
        return found

    @contextmanager
    def _unpacker(self, shell: Shell) -> Iterator[Unpacker]:
        """One that is kept, since an account's start-up files may take longer than all else; or a new one."""
        unpacker = None
        with suppress(IndexError):
            unpacker = self._unpackers.pop()
        # Servers may end a session that was idle (ChannelTimeout, sshd_config(5)).
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

    def _tried(self, fact: Literal["pack", "unpack"], work: Callable[[Shell, bool], T]) -> T | None:
        """What *work* gives, or None if the server's shell fails.

        The first time nothing is known of the server, and to probe it takes as long as thousands of files: *work* is told so,
        and only if it fails the shell is probed.
        """
        if not self.may(fact):
            return None
        first = fact not in self._able
        # A shell that hangs is given up as soon as by the probe.
        shell = Shell(self._command_channel, min(self._timeout, LONGEST) if first else self._timeout)
        try:
            with self._bulk, self.command():
                found = work(shell, first)
        except FATAL:
            raise
        except (StorageError, ConnectionLostError) as error:
            if first:
                self._able[fact] = getattr(self.facts, fact)
            elif isinstance(error, ConnectionLostError):
                raise
            # One of many files, or its directory: SFTP tells which.
            logger.info("%s: file by file instead of by tar: %s", self._where, error)
            return None
        self._able[fact] = True
        return found

    @contextmanager
    def command(self, identifier: str | None = None) -> Iterator[Shell]:
        """The shell; what goes wrong with it is an error of ours, or a ConnectionLostError."""
        try:
            yield self.shell
        except StorageError:
            raise
        except Exception as error:
            refused = isinstance(error, ssh_library().ChannelException)
            if not refused and getattr(error, "errno", None) is None:
                self.doubt()
            # One channel too many is refused, and an answer may make no sense: what there is goes on.
            if refused or isinstance(error, ValueError):
                raise told(error, identifier, self._where) from error
            if isinstance(error, EOFError | TimeoutError | ConnectionError | ssh_library().SSHException):
                raise lost(error) from error
            # What paramiko raises as a plain OSError without a number is of the channel.
            if isinstance(error, OSError) and error.errno is None:
                raise lost(error) from error
            if isinstance(error, OSError | CommandError):
                raise told(error, identifier, self._where) from error
            raise

    def let_go(self, handle: bytes) -> None:
        """Close a handle of this process, whatever has become of it."""
        if self._process == os.getpid() and self.session.failure is None:
            self.operations.let_go(handle)

    def discard(self, staged: StagedUpload) -> None:
        """Remove a file under a temporary name, if this process still has the connection."""
        if self._process == os.getpid() and self.session.failure is None:
            self.operations.discard(staged)

    def close(self) -> None:
        """End the connection; in another process than its own, only that process's copy of the descriptor."""
        if self._process != os.getpid():
            self.abandon()
            return
        with suppress(Exception):
            self.session.close()
        with suppress(Exception):
            self._end()

    def on_close(self, end: Callable[[], object]) -> None:
        """Have *end* close the client, and what it goes through."""
        self._end = end

    def abandon(self) -> None:
        """Close this process's copy of the descriptor without a word: the connection is the parent's."""
        with suppress(Exception):
            # A socket that is closed says nothing to the peer as long as another process has it.
            assert self._transport is not None
            os.close(self._transport.sock.detach())

    # Setting up

    def _prepare(self, transport: paramiko.Transport, settings: SSHSettings) -> None:
        if settings.keepalive:
            transport.set_keepalive(max(1, round(settings.keepalive)))
        packetizer = getattr(transport, "packetizer", None)
        if packetizer is not None:
            packetizer.REKEY_BYTES = REKEY_BYTES
            packetizer.REKEY_PACKETS = REKEY_PACKETS

    def _sftp(self, transport: paramiko.Transport) -> SFTPSession:
        try:
            channel = _sftp_channel(transport, self._timeout)
        except Exception as error:
            raise StorageError(f"no SFTP: {error}", backend=self._where, retryable=True) from error
        # Others may have one process, or thread, for all: what holds it would hold the second session too.
        forks = "OpenSSH" in str(transport.remote_version)
        return SFTPSession(channel, partial(_wake, transport) if forks else None)

    def _command_channel(self) -> paramiko.Channel:
        assert self._transport is not None
        return self._transport.open_session(timeout=self._timeout)

    def _resolved(self, base_dir: str) -> bytes:
        """The base directory as an absolute path; what is beneath it is reached by no other."""
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
        found = self.run(_found(path))
        self.base_exists = found is not None
        if found is not None and found.mode is not None and not stat.S_ISDIR(found.mode):
            raise ConfigurationError(
                f"remote_base_dir: {base_dir!r} is not a directory", parameter="remote_base_dir"
            )
        return path

    @property
    def links(self) -> bool:
        """Whether the server makes hard links by SFTP, of which some say so and refuse: found out without a trace."""
        with self._probing:
            if self._links is None:
                self._links = self.run(_linking(self.base))
            return self._links

    def _may(self, fact: str, extension: bytes) -> bool:
        """Whether the shell has to do what SFTP cannot."""
        return extension not in self.session.extensions and bool(getattr(self.facts, fact))

    def _move(self, old: bytes, new: bytes) -> None:
        with self.command() as shell:
            try:
                shell.rename(old, new)
            except FileNotFoundError as error:
                # It may be the directory, which is then made.
                raise StatusError(NO_SUCH_FILE, str(error)) from error

    def _warn_of_gap(self) -> None:
        if memory.first(self.endpoint):
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
    """The client's transport, if it is paramiko's; a substitute is used by the methods of its SFTPClient."""
    get = getattr(client, "get_transport", None)
    transport = get() if callable(get) else None
    return transport if isinstance(transport, ssh_library().Transport) else None


def _sftp_channel(transport: paramiko.Transport, seconds: float) -> paramiko.Channel:
    """A channel with the subsystem started; *seconds* are the limit of each step, and of each receive and send later."""
    channel = transport.open_session(timeout=seconds)
    channel.settimeout(seconds)
    with _limited(channel, seconds):
        channel.invoke_subsystem("sftp")
    return channel


def _wake(transport: paramiko.Transport, path: bytes, held: Callable[[], bool]) -> None:
    """Open a pipe to be written, and close it: what waits in another session for that goes on."""
    session = SFTPSession(_sftp_channel(transport, LONGEST))
    try:
        if held():
            session.run(_opened(path))
    finally:
        session.close()


def _opened(path: bytes) -> Steps[None]:
    (reply,) = yield [packets.open_request(path, packets.FXF_WRITE)]
    yield [packets.request(packets.CLOSE, packets.handle_in(reply))]


def _host_key(transport: paramiko.Transport | None) -> bytes:
    return b"" if transport is None else bytes(transport.get_remote_server_key().asbytes())


@contextmanager
def _limited(channel: paramiko.Channel, seconds: float) -> Iterator[None]:
    """Close the channel if the body takes longer: paramiko waits for some answers without a limit."""
    timer = threading.Timer(seconds, channel.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _real_path(path: bytes) -> Steps[bytes]:
    (reply,) = yield [packets.request(packets.REALPATH, path)]
    entries = packets.entries_in(reply)
    if len(entries) != 1 or not entries[0].name or b"\0" in entries[0].name:
        raise SFTPProtocolError("the SFTP server does not tell where its home directory is")
    return entries[0].name


def _found(path: bytes) -> Steps[packets.Attributes | None]:
    (reply,) = yield [packets.request(packets.STAT, path)]
    try:
        return packets.attributes_in(reply)
    except StatusError as error:
        if error.code == NO_SUCH_FILE:
            return None
        raise


def _linking(base: bytes) -> Steps[bool]:
    name = posixpath.join(base, temporary_name().encode())
    (reply,) = yield [packets.extended_request(packets.HARDLINK, name, name + b"-")]
    try:
        packets.check(reply)
    except StatusError as error:
        return error.code != packets.UNSUPPORTED
    return True
