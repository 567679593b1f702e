"""Objects: what the verbs do to one object, carried over lost connections."""

from __future__ import annotations

import io
import itertools
import logging
import posixpath
import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import BinaryIO, TypeVar, cast

from storage_backend.backends.remote.connection import Connection
from storage_backend.backends.remote.errors import ShellError
from storage_backend.backends.remote.link import Link
from storage_backend.backends.remote.listing import info_of
from storage_backend.backends.remote.operations import Place, Staged, in_seconds
from storage_backend.backends.remote.packets import Attributes
from storage_backend.backends.remote.reading import RemoteFile
from storage_backend.backends.remote.session import Steps
from storage_backend.backends.remote.writing import Upload
from storage_backend.base import not_found
from storage_backend.errors import NotFoundError, UnavailableError
from storage_backend.info import ObjectInfo
from storage_backend.last_seen import LastSeen
from storage_backend.streams import (
    CHUNK,
    HashingReader,
    check_arrived,
    check_digest,
    chunks,
    hashing,
    new_digest,
    read_all,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

SMALL = 256 << 10  # bytes that are written from memory, in three exchanges
READ_RATHER = 1 << 20  # bytes; a command takes as long to start as these to arrive
FIRST_MEAN = 64 << 10  # bytes of an object, before anything is known
RECEIPTS = 10_000  # writes that are remembered until somebody asks how they show
LARGE_COPY = 64 << 20  # bytes; a command of its own then leaves the SFTP session free


class Objects:
    """Operations on objects, whose places are relative to the base directory.

    Args:
        link: the way to the server.
        where: the backend's location, for errors.

    Attributes:
        receipts: what listings will show of the objects last written.
        last_seen: what reads saw.
        mean_size: bytes of an object, as far as batches that were read tell.
    """

    def __init__(self, link: Link, where: str) -> None:
        self.link = link
        self.where = where
        self.receipts: dict[str, Attributes] = {}
        self.last_seen = LastSeen()
        self.mean_size: float = FIRST_MEAN

    def remember(self, place: Place, staged: Staged) -> None:
        """Keep what a listing will show of an object that was just published, for whoever asks."""
        # All at once: other threads take from it and add to it in the meantime.
        if len(self.receipts) >= RECEIPTS:
            self.receipts.clear()
        if staged.new is None:
            self.receipts.pop(place.identifier, None)
        else:
            self.receipts[place.identifier] = staged.new

    def note_size(self, size: int) -> None:
        """Take the size of an object that was read into account; a single large one does not count for more than a few."""
        self.mean_size += (min(size, 1 << 20) - self.mean_size) / 64

    def facts(self, place: Place) -> Attributes:
        """The attributes of an object."""
        return self._run(place, lambda connection, at: connection.operations.facts(at))

    def read_small(self, place: Place, most: int) -> bytes | None:
        """The whole object; None if it has more than *most* bytes."""
        looks = itertools.count()  # not before the first try
        self.last_seen.note(None)
        content, facts = self._run(
            place, lambda connection, at: connection.operations.read(at, most, look=next(looks) > 0)
        )
        self.saw(place, facts)
        return content

    def saw(self, place: Place, facts: Attributes) -> None:
        """Note what a read saw."""
        self.last_seen.note(info_of(place.identifier, facts))

    def read_whole(self, place: Place) -> bytes:
        """The whole object, of any size."""
        with RemoteFile(self.link, place, self.where) as file:
            content = file.readall()
        self.saw(place, file.facts)
        return content

    def write(
        self, place: Place, content: bytes, modified: datetime | None = None, *, verify: bool = False
    ) -> None:
        """Store an object."""
        if verify or len(content) > SMALL:
            self.write_stream(place, io.BytesIO(content), modified=modified, verify=verify)
            return
        self.publish(self._staged(place, content, modified, None), place, len(content))

    def write_stream(
        self,
        place: Place,
        reader: BinaryIO,
        *,
        info: ObjectInfo | None = None,
        modified: datetime | None = None,
        verify: bool = False,
    ) -> None:
        """Store what *reader* gives."""
        start = _position(reader)
        if info is not None and modified is None:
            modified = info.modified
        source: BinaryIO | HashingReader = hashing(reader) if verify else reader
        head = _head(cast(BinaryIO, source))
        if len(head) <= SMALL:
            digest = source.hexdigest() if verify and isinstance(source, HashingReader) else None
            check_arrived(info, place.identifier, len(head), digest)
            self.publish(self._staged(place, head, modified, digest), place, len(head))
            return
        fresh = True

        def send(connection: Connection) -> tuple[Staged, int]:
            nonlocal fresh, source, head
            if not fresh:
                assert start is not None
                reader.seek(start)
                source, head = hashing(reader) if verify else reader, b""
            fresh = False
            upload = Upload(connection, connection.at(place))
            try:
                upload.write(head)
                for piece in chunks(cast(BinaryIO, source)):
                    upload.write(piece)
                digest = source.hexdigest() if verify and isinstance(source, HashingReader) else None
                check_arrived(info, place.identifier, upload.size, digest)
                staged = upload.finish(in_seconds(modified))
            except BaseException:
                upload.discard()
                raise
            self._verify(connection, staged, place, digest, upload.size)
            return staged, upload.size

        staged, size = self.link.run(place.identifier, send, again=start is not None)
        self.publish(staged, place, size)

    def publish(self, staged: Staged, place: Place, size: int) -> None:
        """Give a staged file its name. One that is gone when we look again has it already."""
        tried = False

        def publish(connection: Connection) -> None:
            nonlocal tried
            at = connection.at(place)
            again, tried = tried, True
            operations = connection.operations
            try:
                if again:
                    connection.run(operations.heal(at))
                    if connection.run(operations.entry(staged.temporary)) is None:
                        raise not_found(place.identifier, self.where)
                connection.run(operations.publish(staged, at))
            except NotFoundError as error:
                # The server we lost may have renamed it, even just now.
                found = connection.run(operations.entry(at.path)) if again else None
                if found is not None and found.size == size:
                    return
                raise UnavailableError(
                    f"what was written for {place.identifier!r} in {self.where} is gone before it had its name",
                    identifier=place.identifier,
                    backend=self.where,
                ) from error

        self.link.run(place.identifier, publish)
        self.remember(place, staged)

    def create(self, place: Place, content: bytes | BinaryIO) -> bool:
        """Store an object if there is none."""
        spool = content if isinstance(content, bytes) else read_all(content)
        if len(spool) <= SMALL:
            staged = self._staged(place, spool, None, None)
        else:
            staged = self.link.run(place.identifier, lambda connection: self._sent(connection, place, spool))
        # A link that was or was not made before the connection was lost cannot be told from another's.
        return self.link.run(
            place.identifier,
            lambda connection: connection.run(connection.operations.create(staged, connection.at(place))),
            again=False,
        )

    def delete(self, place: Place) -> None:
        """Remove an object."""
        tried = False

        def delete(connection: Connection) -> None:
            nonlocal tried
            again, tried = tried, True
            try:
                connection.run(connection.operations.delete(connection.at(place)))
            except NotFoundError:
                # It was we who removed it, before the connection was lost.
                if not again:
                    raise

        self.link.run(place.identifier, delete)

    def move(self, source: Place, dest: Place) -> bool:
        """Give an object another name; False if it must be copied instead, and nothing was done."""
        tried = False

        def move(connection: Connection) -> bool:
            nonlocal tried
            again, tried = tried, True
            at = connection.at(dest)
            if again:
                connection.run(connection.operations.heal(at))
            try:
                return connection.run(connection.operations.move(connection.at(source), at))
            except NotFoundError:
                if not again or connection.run(connection.operations.entry(at.path)) is None:
                    raise
                return True

        return self.link.run(source.identifier, move)

    def copy(self, source: Place, dest: Place) -> bool:
        """Copy an object on the server; False if that cannot be done there."""

        def copy(connection: Connection) -> bool:
            first, second = connection.at(source), connection.at(dest)
            operations = connection.operations
            found = connection.run(operations.facts(first))
            large = (found.size or 0) > LARGE_COPY
            if operations.can_copy() and not (large and connection.facts.copy):
                connection.run(operations.copy(first, second))
                return True
            if not connection.facts.copy:
                return False
            connection.run(operations.make_directory(posixpath.dirname(second.path), second))
            staged = Staged(operations.beside(second.path), connection.run(operations.entry(second.path)))
            try:
                with connection.command(source.identifier) as shell:
                    shell.copy(first.path, staged.temporary)
                copied = connection.run(operations.entry(staged.temporary))
                if copied is None or copied.size != found.size:
                    raise ShellError(f"cp did not copy all of {source.identifier!r}", backend=self.where)
                connection.run(operations.keep_mode(staged, second))
            except ShellError as error:
                logger.warning("%s: copying by reading and writing: %s", self.where, error)
                operations.discard(staged)
                return False
            except BaseException:
                operations.discard(staged)
                raise
            connection.run(operations.publish(staged, second))
            return True

        return self.link.run(source.identifier, copy)

    def digest(self, place: Place, algorithm: str) -> str | None:
        """The digest of an object, as the server makes it out; None if it cannot, or if reading it costs less."""

        def digest(connection: Connection) -> str | None:
            at = connection.at(place)
            found = connection.run(connection.operations.facts(at))
            if (found.size or 0) <= READ_RATHER or algorithm not in connection.facts.digests:
                return None
            return self._digests(connection, [at.path], algorithm).get(at.path)

        return self.link.run(place.identifier, digest)

    def staged_digest(self, staged: Staged) -> str | None:
        """The SHA-256 of a staged file, as the server makes it out; None if it cannot."""
        found = self.link.run(None, lambda connection: self.stored_digests(connection, [staged.temporary]))
        return found.get(staged.temporary)

    def remove(self, staged: Staged) -> None:
        """Remove a staged file."""
        self.link.run(None, lambda connection: connection.run(connection.operations.remove(staged.temporary)))

    def digests(self, places: Iterable[Place]) -> dict[Place, str]:
        """The SHA-256 of those objects that the server digests by itself."""
        wanted = list(places)

        def digests(connection: Connection) -> dict[Place, str]:
            paths = {connection.at(place).path: place for place in wanted}
            return {paths[path]: digest for path, digest in self.stored_digests(connection, paths).items()}

        return self.link.run(None, digests)

    def stored_digest(self, connection: Connection, path: bytes, identifier: str, size: int) -> str:
        """The SHA-256 of a file under a temporary name: as the server makes it out, or of what is read back if that is less."""
        if size > READ_RATHER and "sha256" in connection.facts.digests:
            found = self._digests(connection, [path], "sha256").get(path)
            if found is not None:
                return found
        digest = new_digest("sha256")
        with RemoteFile(self.link, Place(identifier, path), self.where) as file:
            while piece := file.next_piece(CHUNK):
                digest.update(piece)
        return digest.hexdigest()

    def stored_digests(self, connection: Connection, paths: Iterable[bytes]) -> dict[bytes, str]:
        """The SHA-256 of files under temporary names, of as many as the server makes out itself."""
        if "sha256" not in connection.facts.digests:
            return {}
        return self._digests(connection, paths, "sha256")

    def _digests(self, connection: Connection, paths: Iterable[bytes], algorithm: str) -> dict[bytes, str]:
        """What the server's tool tells; nothing of what it fails to tell, which is then read."""
        wanted = list(paths)
        found: dict[bytes, str] = {}
        try:
            with connection.command() as shell:
                found.update(shell.digests(wanted, algorithm))
        except ShellError as error:
            logger.warning("%s: reading instead of %ssum: %s", self.where, algorithm, error)
        form = re.compile(f"[0-9a-f]{{{len(new_digest(algorithm).hexdigest())}}}")
        return {path: digest for path, digest in found.items() if form.fullmatch(digest)}

    def _staged(self, place: Place, content: bytes, modified: datetime | None, digest: str | None) -> Staged:
        """A staged file with *content*, verified if there is a digest."""

        def stage(connection: Connection) -> Staged:
            staged = connection.run(
                connection.operations.stage(connection.at(place), content, in_seconds(modified))
            )
            self._verify(connection, staged, place, digest, len(content))
            return staged

        return self.link.run(place.identifier, stage)

    def _sent(self, connection: Connection, place: Place, content: bytes) -> Staged:
        upload = Upload(connection, connection.at(place))
        try:
            upload.write(content)
            return upload.finish(None)
        except BaseException:
            upload.discard()
            raise

    def _verify(
        self, connection: Connection, staged: Staged, place: Place, digest: str | None, size: int
    ) -> None:
        """Compare a staged file with what was read; one that differs is removed."""
        if digest is None:
            return
        try:
            found = self.stored_digest(connection, staged.temporary, place.identifier, size)
            check_digest(place.identifier, digest, found, "what was stored")
        except BaseException:
            connection.operations.discard(staged)
            raise

    def _run(self, place: Place, steps: Callable[[Connection, Place], Steps[T]]) -> T:
        return self.link.run(
            place.identifier, lambda connection: connection.run(steps(connection, connection.at(place)))
        )


def _position(reader: BinaryIO) -> int | None:
    """Where a reader is, if it can be brought back there."""
    try:
        return reader.tell() if reader.seekable() else None
    except (AttributeError, OSError, ValueError):
        return None


def _head(reader: BinaryIO) -> bytes:
    """The beginning: all, if it is no more than SMALL bytes; else somewhat more."""
    pieces: list[bytes] = []
    size = 0
    for piece in chunks(reader, SMALL + 1):
        pieces.append(piece)
        size += len(piece)
        if size > SMALL:
            break
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
