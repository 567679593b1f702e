"""RemoteStorage: the verbs."""

from __future__ import annotations

import io
import logging
import os
import posixpath
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from typing_extensions import override

from storage_backend import identifiers
from storage_backend.backends.remote import batches, listing, transfers
from storage_backend.backends.remote.connection import Connection
from storage_backend.backends.remote.errors import LostError, ShellError
from storage_backend.backends.remote.hooks import RemoteHooks
from storage_backend.backends.remote.link import LOSSES, Link
from storage_backend.backends.remote.locations import location_for
from storage_backend.backends.remote.objects import Objects
from storage_backend.backends.remote.operations import Place
from storage_backend.backends.remote.packets import HARDLINK, Attributes
from storage_backend.backends.remote.reading import RemoteFile
from storage_backend.backends.remote.settings import SSHConfig, read_settings
from storage_backend.backends.remote.sinks import RemoteSink
from storage_backend.base import Identifiers, Item, StorageBackend, unsupported
from storage_backend.counted import Progress, delete_counted, read_counted, write_counted
from storage_backend.errors import (
    ConfigurationError,
    InvalidIdentifierError,
    NotAFileError,
    NotFoundError,
    StorageError,
)
from storage_backend.hooks import Hooks, digest_of
from storage_backend.info import Capability, ObjectInfo
from storage_backend.owners import is_abandoned
from storage_backend.paths import expanded
from storage_backend.scanning import OnSkip, report_skip
from storage_backend.secrets import refuse_pickle
from storage_backend.streams import (
    CHUNK,
    Content,
    Moved,
    Writer,
    check_mode,
    check_range,
    new_digest,
    plain,
    unwatched,
)

logger = logging.getLogger(__name__)

MAX_NAME = 255  # bytes; NAME_MAX of every file system in common use
_LARGE = 1 << 20  # bytes; from here on it is worth asking the server's shell


class RemoteStorage(StorageBackend):
    """The files beneath one directory of a server that is reached by SSH.

    Each endpoint is another way to the same files. The first listed that works is used: one that accepts us and where the
    base directory can be reached. When it fails, the next one is, and what is safe to repeat is done again there; when
    one that is listed earlier is back, it is used again.

    Writes are atomic: a temporary name first (but see `non_atomic_overwrite` in SSHConfig). Symlinks are followed by the server, wherever they lead; write, move and
    delete act on the link itself, but one that would lead elsewhere under another name becomes a copy of its object there. The base directory comes to be with the first write.

    Args:
        ssh_config: who and where; see SSHConfig.
        remote_base_dir: an absolute path, or one relative to the home directory, or with "~" for it.
        auto_connect: connect now; otherwise the first use does.
        create_if_missing: whether a base directory that does not exist yet is made by the first write; otherwise it is an
            error.

    Attributes:
        user: the account.
        endpoints: as given.
        connection_timeout: seconds.
        remote_base_dir: as given.
        host: of the endpoint in use; None as long as there is none.
        port: likewise.

    Raises:
        ConfigurationError: a parameter is wrong; a ValueError.
        NoEndpointError: no endpoint works; a ConnectionError. It is an AuthenticationError too if each refused us.
        BaseDirectoryNotFoundError: there is no base directory, and it is not to be made.
        MissingClientError: paramiko is not installed.
    """

    def __init__(
        self,
        ssh_config: SSHConfig,
        remote_base_dir: str,
        auto_connect: bool = True,
        *,
        create_if_missing: bool = True,
    ) -> None:
        self._settings = read_settings(ssh_config)
        if not isinstance(remote_base_dir, str) or not remote_base_dir or not _is_path(remote_base_dir):
            raise ConfigurationError(
                "remote_base_dir must be a path on the server, as text", parameter="remote_base_dir"
            )
        self.user = self._settings.user
        self.endpoints = ssh_config["endpoints"]
        self.connection_timeout = self._settings.connection_timeout
        self.remote_base_dir = remote_base_dir
        self._create_if_missing = create_if_missing
        self._location = location_for(self._settings, remote_base_dir)
        self._begin()
        if auto_connect:
            self._link.connection()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._location!r})"

    def __getstate__(self) -> dict[str, Any]:
        refuse_pickle(
            self._location,
            self._settings.password,
            self._settings.passphrase,
            advice='"env:NAME", "file:PATH" or a key',
        )
        state = self.__dict__.copy()
        for name in ("_link", "_objects"):
            del state[name]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def host(self) -> str | None:
        """Of the endpoint in use, as listed; None as long as there is none."""
        endpoint = self._link.endpoint
        return None if endpoint is None else endpoint.host

    @property
    def port(self) -> int | None:
        """Of the endpoint in use; None as long as there is none."""
        endpoint = self._link.endpoint
        return None if endpoint is None else endpoint.port

    def check_connection(self) -> str:
        """Connect if need be, to the first endpoint that works now, and see that the base directory can be reached.

        Returns:
            Where to and with what, for people.

        Raises:
            NoEndpointError: no endpoint works.
        """
        self._link.prefer()

        def described(connection: Connection) -> str:
            there = connection.run(connection.operations.entry(connection.base)) is not None
            base = os.fsdecode(connection.base)
            shell = connection.described_shell()
            return f"{self.user}@{connection.endpoint}: {base} {'is there' if there else 'does not exist yet'}; {shell}"

        return self._link.run(None, described)

    def cleanup(self, older_than: timedelta | float = timedelta(days=1)) -> int:
        """Remove what broken transfers left: everything that has one of our temporary names.

        On a server that cannot replace a file in one step, an object that was moved aside by a write that was killed goes
        back, however old.

        Args:
            older_than: only what has not been written to for as long; a number is seconds. The server's clock and
                ours should agree.

        Returns:
            How many files and folders were removed.
        """
        seconds = older_than.total_seconds() if isinstance(older_than, timedelta) else float(older_than)
        return self._link.run(None, lambda connection: listing.cleanup(connection, seconds, self._location))

    @override
    def exists(self, identifier: str) -> bool:
        try:
            self._objects.facts(self._place(identifier))
        except (InvalidIdentifierError, NotAFileError, NotFoundError):
            return False
        return True

    @override
    def read(self, identifier: str) -> bytes:
        place = self._place(identifier)
        content = self._objects.read_small(place, _LARGE)
        if content is None:
            content = self._objects.read_whole(place)
        return content

    @override
    def write(self, identifier: str, content: Content) -> bool:
        content = plain(content)
        if not isinstance(content, bytes):
            return self.write_stream(identifier, content)
        self._objects.write(self._place(identifier), content)
        return True

    @override
    def delete(self, identifier: str) -> bool:
        self._objects.delete(self._place(identifier))
        return True

    @override
    def list(self, pattern: str | None = None) -> Identifiers:
        glob = identifiers.glob(pattern) if pattern is not None else None
        # A pattern without "**" is for some directories only: these are read one by one, the others not at all.
        shallow = pattern is not None and "**" not in pattern.split("/")
        enter = glob.may_hold if glob is not None and shallow else None
        found = self._walked(glob.stem if glob else "", enter, None, details=False)
        return [identifier for identifier, _ in found if glob is None or glob.matches(identifier)]

    @override
    def get_path(self, identifier: str) -> str:
        self._place(identifier)
        return posixpath.join(self.remote_base_dir, identifier)

    @override
    def size(self, identifier: str) -> int:
        found = self.stat(identifier).size
        if found is None:
            raise StorageError(
                f"the server does not tell the size of {identifier!r} in {self._location}",
                identifier=identifier,
                backend=self._location,
            )
        return found

    @override
    def copy(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._place(source_id), self._place(dest_id)
        if source_id == dest_id:
            self._objects.facts(source)
        elif not self._objects.copy(source, dest):
            with self._opened(source) as file:
                modified = listing.info_of(source_id, file.facts).modified
                self._objects.write_stream(dest, cast(BinaryIO, file), modified=modified)
        return True

    @override
    def move(self, source_id: str, dest_id: str) -> bool:
        source, dest = self._place(source_id), self._place(dest_id)
        if source_id == dest_id:
            self._objects.facts(source)
        elif not self._objects.move(source, dest):
            return super().move(source_id, dest_id)
        return True

    @override
    def write_stream(
        self, identifier: str, reader: BinaryIO, *, info: ObjectInfo | None = None, verify: bool = False
    ) -> bool:
        plain(reader)
        self._objects.write_stream(self._place(identifier), reader, info=info, verify=verify)
        return True

    @override
    def stat(self, identifier: str) -> ObjectInfo:
        return listing.info_of(identifier, self._objects.facts(self._place(identifier)))

    @override
    def scan(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo]:
        return (info for _, info in self._walked(prefix, None, on_skip, details=True) if info is not None)

    @override
    def scan_level(self, prefix: str = "", *, on_skip: OnSkip | None = None) -> Iterator[ObjectInfo | str]:
        directory = _directory(prefix if not prefix or prefix.endswith("/") else f"{prefix}/")
        if directory is None:
            return

        def found(connection: Connection) -> Sequence[tuple[bytes, Attributes | None]]:
            if not listing.is_beneath(connection, directory):
                return ()
            return [*listing.level(connection, directory, self._location)]

        entries = self._link.run(None, found)
        for path, attributes in entries:
            if path.endswith(b"/"):
                if self._usable(path[:-1], on_skip) is not None:
                    yield identifiers.decode(path)
                continue
            info = self._listed(listing.Listed(path, attributes), on_skip)
            if info is not None:
                yield info

    @override
    def open(self, identifier: str, mode: Literal["rb", "wb"] = "rb") -> BinaryIO:
        check_mode(mode)
        place = self._place(identifier)
        if mode == "rb":
            file = self._opened(place)
            self._objects.saw(place, file.facts)
            return io.BufferedReader(file, CHUNK)
        sink = RemoteSink(self._objects, place)
        writer = Writer(sink)
        weakref.finalize(writer, sink.discard)  # collected unclosed
        return cast(BinaryIO, writer)

    @override
    def read_range(self, identifier: str, start: int, end: int | None = None) -> bytes:
        check_range(start, end)
        place = self._place(identifier)
        self._objects.last_seen.note(None)
        with self._opened(place) as file:
            content = file.read_exactly(start, file.size if end is None else end)
        self._objects.saw(place, file.facts)
        return content

    @override
    def read_many(
        self, identifiers: Iterable[str], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, bytes]]:
        return read_counted(
            batches.read_many(self._objects, self._place, identifiers, self._location), progress
        )

    @override
    def write_many(
        self, items: Iterable[Item], *, verify: bool = False, progress: Progress | None = None
    ) -> int:
        if progress is not None:
            return write_counted(self, items, progress, verify=verify)
        return batches.write_many(self._objects, self._place, items, self._location, verify=verify)

    @override
    def delete_many(self, identifiers: Iterable[str], *, progress: Progress | None = None) -> int:
        if progress is not None:
            return delete_counted(self, identifiers, progress)
        return batches.delete_many(self._objects, self._place, identifiers, self._location)

    @override
    def download(self, identifier: str, path: str | os.PathLike[str]) -> bool:
        return self._download(identifier, path, unwatched)

    def _download(self, identifier: str, path: str | os.PathLike[str], moved: Moved) -> bool:
        place = self._place(identifier)
        with self._opened(place) as file:
            transfers.download(
                file,
                f"{self._location}#{identifier}",
                Path(expanded(path)),
                lambda: self._objects.digest(place, "sha256"),
                moved,
            )
        self._objects.saw(place, file.facts)
        return True

    @override
    def upload(self, path: str | os.PathLike[str], identifier: str) -> bool:
        return self._upload(path, identifier, unwatched)

    def _upload(self, path: str | os.PathLike[str], identifier: str, moved: Moved) -> bool:
        return transfers.upload(self, self._objects, Path(expanded(path)), self._place(identifier), moved)

    @override
    def create(self, identifier: str, content: Content) -> bool:
        place = self._place(identifier)
        content = plain(content)
        if Capability.CREATE not in self.capabilities:
            raise unsupported(self, "create", identifier)
        return self._objects.create(place, content)

    @override
    def checksum(self, identifier: str, algorithm: str = "sha256") -> str:
        return self._checksum(identifier, algorithm, unwatched)

    def _checksum(self, identifier: str, algorithm: str, moved: Moved) -> str:
        new_digest(algorithm)
        place = self._place(identifier)
        found = self._objects.digest(place, algorithm)
        return found if found is not None else digest_of(self, identifier, algorithm, moved)

    @override
    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        found = batches.facts_of_many(self._objects, self._place, identifiers, self._location)
        return (listing.info_of(place.identifier, facts) for place, facts in found)

    @override
    def flush(self) -> bool:
        """Return once every write so far survives power loss: everything on the server's file system is stored."""

        def sync(connection: Connection) -> bool:
            if not connection.facts.sync:
                return False
            with connection.command() as shell:
                shell.sync(
                    connection.base if connection.run(connection.operations.entry(connection.base)) else b"/"
                )
            return True

        if not self._link.run(None, sync):
            raise unsupported(self, "flush", None)
        return True

    def _tidy(self) -> int:
        link = self._link
        lost = tuple(link.lost)
        if lost:  # since the last listing, maybe
            for _ in self.scan():
                pass
        left = [
            path
            for path in sorted(link.left)
            if (name := path.rpartition(b"/")[2]).startswith(lost) or is_abandoned(os.fsdecode(name))
        ]
        link.left.clear()
        link.lost.difference_update(lost)
        return link.run(None, lambda connection: listing.remove_all(connection, left)) if left else 0

    @property
    @override
    def capabilities(self) -> Capability:
        """What this server can do; it is asked, so this connects."""

        def found(connection: Connection) -> Capability:
            facts = connection.facts
            flags = Capability.RANGES | Capability.DIRECTORIES
            if (HARDLINK in connection.session.extensions and connection.links) or facts.link:
                flags |= Capability.CREATE
            if connection.operations.can_copy() or facts.copy:
                flags |= Capability.SERVER_COPY
            if "sha256" in facts.digests:
                flags |= Capability.CHECKSUM
            if facts.sync:
                flags |= Capability.FLUSH
            return flags

        return self._link.run(None, found)

    @property
    @override
    def keeps_modified(self) -> bool:
        return True

    @property
    @override
    def hooks(self) -> Hooks:
        return RemoteHooks(self)

    @property
    @override
    def location(self) -> str:
        return self._location

    @override
    def close(self) -> None:
        self._link.close()

    def _begin(self) -> None:
        """What an instance has that no pickle does."""
        self._link = Link(
            self._settings,
            self.remote_base_dir,
            self._location,
            must_exist=not self._create_if_missing,
        )
        self._objects = Objects(self._link, self._location)

    def _place(self, identifier: str) -> Place:
        """The object and its path beneath the base directory."""
        identifiers.check(identifier, surrogates=True, max_segment_bytes=MAX_NAME)
        return Place(identifier, identifiers.encode(identifier))

    def _opened(self, place: Place) -> RemoteFile:
        return RemoteFile(self._link, place, self._location)

    def _walked(
        self, prefix: str, enter: Callable[[str], bool] | None, on_skip: OnSkip | None, *, details: bool
    ) -> Iterator[tuple[str, ObjectInfo | None]]:
        """What is beneath, in order; after a lost connection from where it was."""
        directory = _directory(prefix)
        if directory is None:
            return
        start = identifiers.encode(prefix)
        last: bytes | None = None
        losses = 0
        use_shell = enter is None

        def may_enter(path: bytes) -> bool:
            name = self._usable(path + b"/x", on_skip)
            return name is not None and (enter is None or enter(identifiers.decode(path)))

        while True:
            connection = self._link.connection()
            connection.hold()
            try:
                if not listing.is_beneath(connection, directory):
                    return
                by_shell = use_shell and (connection.facts.find if details else connection.facts.find_names)
                entries = (
                    listing.found(connection, start, self._link.note_left, details=details)
                    if by_shell
                    else listing.walk(connection, start, may_enter, self._location, self._link.note_left)
                )
                for entry in entries:
                    if last is not None and entry.path <= last:
                        continue
                    last = entry.path
                    if details:
                        info = self._listed(entry, on_skip)
                        if info is not None:
                            yield info.identifier, info
                    elif entry.is_object and (name := self._usable(entry.path, on_skip)) is not None:
                        yield name, None
                    elif not entry.is_object:
                        self._listed(entry, on_skip)
            except LostError as error:
                losses += 1
                self._link.give_up(connection, error, losses, LOSSES)
            except ShellError as error:
                connection.doubt()
                use_shell = False
                logger.warning("%s: listing by SFTP: %s", self._location, error)
            else:
                return
            finally:
                connection.release()

    def _usable(self, path: bytes, on_skip: OnSkip | None) -> str | None:
        """The identifier that a path is, if it is one; otherwise it is reported."""
        identifier = identifiers.decode(path)
        try:
            self._place(identifier)
        except InvalidIdentifierError as error:
            report_skip(on_skip, error, self._location)
            return None
        return identifier

    def _listed(self, entry: listing.Listed, on_skip: OnSkip | None) -> ObjectInfo | None:
        identifier = self._usable(entry.path, on_skip)
        if identifier is None:
            return None
        if entry.is_object and entry.attributes is not None:
            return listing.info_of(identifier, entry.attributes)
        reason = "Not a regular file" if entry.attributes is not None else "a link that leads nowhere"
        report_skip(
            on_skip,
            NotAFileError(
                f"{reason}: {identifier!r} in {self._location}",
                identifier=identifier,
                backend=self._location,
            ),
            self._location,
        )
        return None


def _is_path(text: str) -> bool:
    """Whether a server can be told *text* as a path."""
    try:
        identifiers.encode(text)
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return "\0" not in text


def _directory(prefix: str) -> bytes | None:
    """The directory that all with this prefix is in, beneath the base directory; None where there can be no object."""
    start, slash, _ = prefix.rpartition("/")
    if slash and not identifiers.is_valid(start, surrogates=True, max_segment_bytes=MAX_NAME):
        return None
    try:
        identifiers.encode(prefix)
    except UnicodeEncodeError:
        return None
    return identifiers.encode(start)
