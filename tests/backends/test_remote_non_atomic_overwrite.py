"""Overwriting on a server that renames over nothing: the old file is moved aside, and comes back whenever something goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from storage_backend import RemoteStorage, StorageError, UnavailableError
from storage_backend.backends.remote.sftp_packets import FAILURE, OK, RENAME, Fields
from tests.sftp_speaker import Answer, BareFolderSpeaker, Hostile, Speaker, status
from tests.ssh_servers import make_key

OLD, NEW = b"old", b"the new content"

Serve = Callable[..., RemoteStorage]


@pytest.fixture(scope="module")
def host_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"), name="host")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the server serves."""
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "a").write_bytes(OLD)
    (root / "d" / "other").write_bytes(b"other")
    return root


@pytest.fixture
def serve(host_key: Path, root: Path) -> Iterator[Serve]:
    """`serve({kind: answer})`: a backend at a bare server of *root* that answers so."""
    with ExitStack() as stack:

        def start(answers: dict[int, Answer] | None = None, **more: Any) -> RemoteStorage:
            server = Hostile(host_key, BareFolderSpeaker, answers or {}, root)
            stack.callback(server.close)
            config: Any = {
                "user": "u",
                "endpoints": [["127.0.0.1", server.port]],
                "password": "p",
                "agent": False,
                "known_hosts": [],
                "connection_timeout": 20.0,
                "io_timeout": 10.0,
                **more,
            }
            return stack.enter_context(RemoteStorage(config, "/", auto_connect=False))

        yield start


def found(root: Path) -> dict[str, bytes]:
    """All files of the server, also those that have reserved names."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def names_in(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*")}


def upon_renaming(act: Callable[[Speaker, bytes, bytes], bytes | None]) -> Answer:
    """Does *act*, which is given the old and the new path; None for the truth."""

    def answer(speaker: Speaker, request: int, body: bytes) -> bytes:
        fields = Fields(body)
        said = act(speaker, fields.string(), fields.string())
        return speaker.honest(RENAME, request, body) if said is None else status(request, FAILURE, said)

    return answer


def by_write(backend: RemoteStorage) -> None:
    backend.write("d/a", NEW)


def by_writer(backend: RemoteStorage) -> None:
    with backend.open("d/a", "wb") as writer:
        writer.write(NEW)


def by_batch(backend: RemoteStorage) -> None:
    backend.write_many([("d/a", NEW)])


def by_move(backend: RemoteStorage) -> None:
    backend.write("source", NEW)
    backend.move("source", "d/a")


WAYS = [by_write, by_writer, by_batch, by_move]


@pytest.mark.parametrize("way", WAYS)
def test_object_is_overwritten_and_one_warning_says_how(
    serve: Serve, root: Path, way: Callable[[RemoteStorage], None], caplog: pytest.LogCaptureFixture
) -> None:
    backend = serve()
    for _ in range(3):
        way(backend)
        backend.close()
    assert found(root) == {"d/a": NEW, "d/other": b"other"}
    assert names_in(root) == {"d", "a", "other"}
    assert sum("cannot replace a file atomically" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("way", WAYS)
def test_object_whose_overwriting_is_refused_is_what_it_was(
    serve: Serve, root: Path, way: Callable[[RemoteStorage], None]
) -> None:
    def refuse(_speaker: Speaker, old: bytes, new: bytes) -> bytes | None:
        return b"no" if new == b"/d/a" and b".~sb-old" not in old else None

    with pytest.raises((StorageError, ExceptionGroup)):
        way(backend := serve({RENAME: upon_renaming(refuse)}))
    backend.close()
    assert {**found(root), "source": NEW} == {"d/a": OLD, "d/other": b"other", "source": NEW}
    assert names_in(root) <= {"d", "a", "other", "source"}


class Killer:
    """Ends the sessions when a file is about to have the name "d/a", as a machine that loses power does."""

    def __init__(self) -> None:
        self.at_work = True

    def __call__(self, speaker: Speaker, old: bytes, new: bytes) -> bytes | None:
        if self.at_work and new == b"/d/a" and b".~sb-old" not in old:
            speaker.channel.get_transport().close()
            raise EOFError
        return None


def killed(serve: Serve, root: Path) -> Killer:
    """The state on the disk after an overwrite was killed at the worst moment."""
    killer = Killer()
    backend = serve({RENAME: upon_renaming(killer)})
    with pytest.raises(UnavailableError):
        backend.write("d/a", NEW)
    backend.close()
    assert "d/a" not in found(root)
    assert OLD in found(root).values()
    return killer


def test_object_of_a_killed_overwrite_comes_back_with_the_next_write(serve: Serve, root: Path) -> None:
    killed(serve, root)
    backend = serve()
    backend.write("d/new", b"x")
    assert backend.read("d/a") == OLD
    assert backend.list() == ["d/a", "d/new", "d/other"]


def test_killed_overwrite_done_again_leaves_nothing(serve: Serve, root: Path) -> None:
    killed(serve, root)
    backend = serve()
    by_write(backend)
    backend.cleanup(0)
    assert found(root) == {"d/a": NEW, "d/other": b"other"}
    assert names_in(root) == {"d", "a", "other"}


def test_object_of_a_killed_overwrite_comes_back_by_cleanup(serve: Serve, root: Path) -> None:
    killed(serve, root)
    backend = serve()
    backend.cleanup()
    assert backend.read("d/a") == OLD
    backend.cleanup(0)
    assert found(root) == {"d/a": OLD, "d/other": b"other"}


def test_object_of_a_killed_overwrite_can_be_deleted(serve: Serve, root: Path) -> None:
    killed(serve, root)
    backend = serve()
    assert backend.delete("d/a") is True
    backend.write("d/new", b"x")
    assert backend.list() == ["d/new", "d/other"]


def test_overwrite_over_a_connection_that_is_lost_is_done_on_the_next(serve: Serve, root: Path) -> None:
    killer = Killer()

    def once(speaker: Speaker, old: bytes, new: bytes) -> bytes | None:
        try:
            return killer(speaker, old, new)
        finally:
            killer.at_work = killer.at_work and new != b"/d/a"

    backend = serve({RENAME: upon_renaming(once)})
    by_write(backend)
    assert not killer.at_work
    backend.close()
    assert found(root) == {"d/a": NEW, "d/other": b"other"}
    assert names_in(root) == {"d", "a", "other"}


def test_overwrite_whose_acknowledgement_is_lost_stays(serve: Serve, root: Path) -> None:
    same_size = OLD[::-1]
    broken: list[bytes] = []

    def after(speaker: Speaker, request: int, body: bytes) -> bytes:
        said = speaker.honest(RENAME, request, body)
        fields = Fields(body)
        if said == status(request, OK) and [fields.string(), fields.string()][1] == b"/d/a" and not broken:
            broken.append(said)
            speaker.channel.get_transport().close()
            raise EOFError
        return said

    backend = serve({RENAME: after})
    backend.write("d/a", same_size)
    assert broken
    backend.close()
    assert found(root) == {"d/a": same_size, "d/other": b"other"}
    assert names_in(root) == {"d", "a", "other"}


def test_of_old_files_the_one_that_was_moved_last_comes_back(serve: Serve, root: Path) -> None:
    killed(serve, root)
    (root / "d" / "a").write_bytes(NEW)
    killed_again = serve({RENAME: upon_renaming(Killer())})
    with pytest.raises(UnavailableError):
        killed_again.move("d/other", "d/a")
    killed_again.close()
    assert {NEW, b"other"} <= set(found(root).values())
    assert "d/a" not in found(root)
    serve().cleanup(0)
    assert found(root) == {"d/a": NEW, "d/other": b"other"}


def test_of_writers_of_one_object_at_once_one_wins_and_none_loses_it(serve: Serve, root: Path) -> None:
    contents = [bytes([65 + number]) * 1000 for number in range(4)]
    backends = [serve() for _ in contents]
    errors: list[Exception] = []

    def write(backend: RemoteStorage, content: bytes) -> None:
        try:
            for _ in range(10):
                backend.write("d/a", content)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=pair) for pair in zip(backends, contents, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for backend in backends:
        backend.close()
    assert found(root).pop("d/a") in contents
    assert set(found(root)) == {"d/a", "d/other"}
