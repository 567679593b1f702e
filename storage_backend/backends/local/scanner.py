"""DirectoryScanner: the objects beneath the base directory, in order."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator

from storage_backend import identifiers
from storage_backend.backends.local.containment import ContainedRoot
from storage_backend.backends.local.errors import ErrorTranslation, translate
from storage_backend.backends.local.local_file import (
    info_of_file,
    is_surely_valid,
    native_path,
    require_regular,
)
from storage_backend.backends.local.walk import Note, WalkedDirectory, walk
from storage_backend.base import Identifiers
from storage_backend.errors import (
    BaseDirectoryNotFoundError,
    InvalidIdentifierError,
    NotAFileError,
    NotFoundError,
)
from storage_backend.info import ObjectInfo
from storage_backend.scanning import OnSkip, report_skip


class DirectoryScanner:
    """Lists a directory tree: `list`, `scan` and `scan_level` of LocalStorage.

    Args:
        root: the base directory.
        where: its location, for errors.
        note: called with the path of each temporary file.
    """

    def __init__(self, root: ContainedRoot, where: str, note: Note) -> None:
        self._root = root
        self._where = where
        self._note = note

    def list(self, pattern: str | None) -> Identifiers:
        """As of StorageBackend."""
        glob = identifiers.glob(pattern) if pattern is not None else None
        runs = self._runs(glob.stem, glob.may_hold, None) if glob else self._runs("", _always, None)
        found: Identifiers = []
        for directory, names, regular in runs:
            run = [directory.path + name for name in names]
            if glob is not None:
                run = [identifier for identifier in run if glob.matches(identifier)]
            if run and not regular and self._look(directory, names[0], None) is None:
                continue
            found += run
        return found

    def scan(self, prefix: str, on_skip: OnSkip | None) -> Iterator[ObjectInfo]:
        """As of StorageBackend."""
        for directory, names, _ in self._runs(prefix, _always, on_skip):
            path, fd = directory.path, directory.fd
            for name in names:
                # Regular files, nearly all, without a function call each; _look decides the rest.
                try:
                    facts = os.stat(identifiers.encode(name), dir_fd=fd, follow_symlinks=False)
                except OSError:
                    facts = None
                if facts is not None and stat.S_ISREG(facts.st_mode):
                    yield info_of_file(path + name, facts)
                elif (info := self._look(directory, name, on_skip)) is not None:
                    yield info

    def scan_level(self, prefix: str, on_skip: OnSkip | None) -> Iterator[ObjectInfo | str]:
        """As of StorageBackend."""
        folders: Identifiers = []  # not entered, so they include directories without objects

        def do_not_enter(path: str) -> bool:
            folders.append(f"{path}/")
            return False

        for directory, names, _ in self._runs(prefix, do_not_enter, on_skip):
            yield from folders
            folders.clear()
            for name in names:
                info = self._look(directory, name, on_skip)
                if info is not None:
                    yield info
        yield from folders

    def _runs(
        self, stem: str, enter: Callable[[str], bool], on_skip: OnSkip | None
    ) -> Iterator[tuple[WalkedDirectory, Identifiers, bool]]:
        """Runs of entries with valid identifiers. Invalid ones are reported."""

        def may_enter(path: str) -> bool:
            return enter(path) and (is_surely_valid(path) or self._valid(f"{path}/x", on_skip))

        for directory, names, regular in walk(self._root, stem, may_enter, self._where, self._note):
            if is_surely_valid(directory.path, max(map(len, names))):
                yield directory, names, regular
            elif valid := [name for name in names if self._valid(directory.path + name, on_skip)]:
                yield directory, valid, regular

    def _valid(self, identifier: str, on_skip: OnSkip | None) -> bool:
        try:
            native_path(identifier)
        except InvalidIdentifierError as error:
            report_skip(on_skip, error, self._where)
            return False
        return True

    def _look(self, directory: WalkedDirectory, name: str, on_skip: OnSkip | None) -> ObjectInfo | None:
        """The ObjectInfo of an entry; None if it was removed meanwhile, or is not an object, which is reported."""
        identifier = directory.path + name
        try:
            facts = os.stat(identifiers.encode(name), dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise translate(error, identifier, self._where) from error
        if stat.S_ISREG(facts.st_mode):
            return info_of_file(identifier, facts)
        try:
            with ErrorTranslation(identifier, self._where):
                return info_of_file(identifier, require_regular(self._root.stat(native_path(identifier))))
        except BaseDirectoryNotFoundError:
            raise
        except (NotFoundError, NotAFileError, InvalidIdentifierError) as error:
            report_skip(on_skip, error, self._where)
            return None


def _always(_: str) -> bool:
    return True
