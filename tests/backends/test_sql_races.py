"""DatabaseStorage: threads and processes at the same objects."""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import pytest

from storage_backend import DatabaseStorage, PreconditionFailedError, SourceChangedError
from storage_backend.backends.sql.object_row import CHUNK_SIZE
from storage_backend.testing.topics.replacing import close_race, together
from tests.backends.sql_samples import is_clean, line_of, program, rows

ROUNDS = 10_000
PROCESSES = 4


def version(number: int) -> bytes:
    """A content that tells a whole from a part, and from a mixture; each 20th has two chunks."""
    return number.to_bytes(4, "big") * (1 + number * 37 % 2000 + CHUNK_SIZE // 4 * (number % 20 == 0))


def number_of(content: bytes) -> int:
    """Which version *content* is; -1 if it is none."""
    number = int.from_bytes(content[:4], "big")
    return number if content == version(number) else -1


WRITER = """
import sys
from storage_backend import DatabaseStorage
from tests.backends.test_sql_races import ROUNDS, version
with DatabaseStorage(sys.argv[1]) as storage:
    for number in range(1, ROUNDS + 1):
        storage.write("a", version(number))
print("done", flush=True)
"""


@pytest.mark.soak
def test_reader_sees_whole_versions_while_they_are_replaced_ten_thousand_times(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", version(0))

        def streamed() -> bytes:
            # A stream pins one version; that it was replaced meanwhile may be said, but nothing else may happen.
            with storage.open("a") as reader:
                try:
                    return b"".join(iter(lambda: reader.read(100_000), b""))
                except SourceChangedError:
                    return version(0)

        def ranged() -> bytes:
            return storage.read_range("a", 0, 10 * CHUNK_SIZE)

        def batched() -> bytes:
            return dict(storage.read_many(["a"]))["a"]

        looks: list[Callable[[], bytes]] = [lambda: storage.read("a"), streamed, ranged, batched]
        reads = 0
        seen = set()
        with program(WRITER, database_url) as process:
            while process.poll() is None or reads < len(looks):
                found = number_of(looks[reads % len(looks)]())
                assert found >= 0, f"read {reads} gave a part or a mixture"
                seen.add(found)
                reads += 1
            assert line_of(process.stdout) == "done"
        assert process.returncode == 0
        assert storage.read("a") == version(ROUNDS)
        assert reads >= 500, reads
        assert len(seen) >= 100, len(seen)
        assert is_clean(database_url)


CREATOR = """
import sys
from storage_backend import DatabaseStorage
storage = DatabaseStorage(sys.argv[1])
storage.exists("warm")
print("ready", flush=True)
sys.stdin.readline()
content = sys.argv[2].encode() * (200_000 if sys.argv[2] == "0" else 1)
print(*(int(storage.create(f"{n}", content)) for n in range(150)))
"""


@pytest.mark.soak
def test_of_many_processes_one_creates(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        processes = [program(CREATOR, database_url, str(number)) for number in range(PROCESSES)]
        for process in processes:
            assert line_of(process.stdout) == "ready"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [[int(word) for word in line_of(process.stdout).split()] for process in processes]
        for process in processes:
            process.communicate()
            assert process.returncode == 0
        assert [sum(column) for column in zip(*answers, strict=True)] == [1] * 150
        for number in range(150):
            (winner,) = [process for process in range(PROCESSES) if answers[process][number]]
            assert storage.read(f"{number}")[:1] == str(winner).encode()
        assert is_clean(database_url)


COUNTER = """
import sys
from storage_backend import DatabaseStorage, PreconditionFailedError
storage = DatabaseStorage(sys.argv[1])
storage.exists("warm")
print("ready", flush=True)
sys.stdin.readline()
done = failed = 0
while done < 100:
    etag = storage.stat("counter").etag
    value = int(storage.read("counter").split()[0])
    try:
        storage.replace("counter", b"%d" % (value + 1), etag)
    except PreconditionFailedError:
        failed += 1
    else:
        done += 1
print(done, failed)
"""


@pytest.mark.soak
def test_replacing_loses_no_update(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("counter", b"0")
        processes = [program(COUNTER, database_url) for _ in range(PROCESSES)]
        for process in processes:
            assert line_of(process.stdout) == "ready"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        answers = [line_of(process.stdout).split() for process in processes]
        for process in processes:
            process.communicate()
            assert process.returncode == 0
        assert [int(done) for done, _ in answers] == [100] * PROCESSES
        assert sum(int(failed) for _, failed in answers) > 0, "nobody met anybody"
        # A value read after the etag may be newer than it, but then the etag is stale and the update is refused.
        assert storage.read("counter") == b"%d" % (100 * PROCESSES)
        assert is_clean(database_url)


def test_replacing_with_streams_loses_no_update(database_url: str) -> None:
    with DatabaseStorage(database_url) as storage:
        storage.write("a", bytes(2 * CHUNK_SIZE))
        etag = cast(str, storage.stat("a").etag)
        contents = [bytes([number]) * (2 * CHUNK_SIZE + number) for number in range(1, 9)]
        answers = together(
            [lambda content=content: storage.replace("a", io.BytesIO(content), etag) for content in contents]  # type: ignore[misc] # a default binds the loop's name
        )
        won = [number for number, answer in enumerate(answers) if isinstance(answer, str)]
        assert len(won) == 1
        assert sum(isinstance(answer, PreconditionFailedError) for answer in answers) == 7
        assert storage.read("a") == contents[won[0]]
        assert storage.stat("a").etag == answers[won[0]]
        assert is_clean(database_url)


@pytest.mark.soak
def test_batches_in_opposite_order_both_arrive(database_url: str) -> None:
    names = [f"{number:03}" for number in range(300)]
    with DatabaseStorage(database_url) as storage, DatabaseStorage(database_url) as other:

        def write(backend: DatabaseStorage, order: list[str], content: bytes) -> int:
            return sum(backend.write_many((name, content) for name in order) for _ in range(5))

        def delete() -> int:
            shuffled = random.Random(1).sample(names, len(names))
            return sum(storage.delete_many(shuffled) for _ in range(5))

        def move() -> int:
            moved = 0
            for number in range(100):
                try:
                    moved += other.move(names[number], names[-number - 1])
                except FileNotFoundError:
                    moved += 1
            return moved

        with close_race():
            answers = together(
                [
                    lambda: write(storage, names, b"forth"),
                    lambda: write(other, names[::-1], b"back"),
                    delete,
                    move,
                ]
            )
        assert answers == [1500, 1500, 1500, 100]
        assert {storage.read(name) for name in storage.list()} <= {b"forth", b"back"}
        assert is_clean(database_url)


@pytest.mark.soak
@pytest.mark.parametrize("size", [5, 2 * CHUNK_SIZE, 5 * CHUNK_SIZE])
def test_copy_and_move_of_what_is_being_replaced_are_whole(
    database_url: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage_backend.backends.sql import copying as module

    monkeypatch.setattr(module, "COPY_AT_ONCE", 2)
    with DatabaseStorage(database_url) as storage, DatabaseStorage(database_url) as other:
        contents = [bytes([number]) * size for number in range(4)]
        deadline = time.monotonic() + 60
        finished = False
        writes = 0

        def replace() -> int:
            nonlocal writes
            while not finished and time.monotonic() < deadline:
                other.write("a", contents[writes % 4])
                writes += 1
            return writes

        def carry(step: Callable[[str, str], bool], target: str) -> int:
            done = 0
            while (done < 8 or writes < 8) and time.monotonic() < deadline:
                # Absent after a move; a large one may be replaced each time.
                with suppress(FileNotFoundError, SourceChangedError):
                    step("a", target)
                    assert storage.read(target) in contents
                    done += 1
            return done

        def both() -> tuple[int, int]:
            nonlocal finished
            try:
                return carry(storage.copy, "copy"), carry(storage.move, "moved")
            finally:
                finished = True

        written, (copied, moved) = together([replace, both])
        assert min(written, copied, moved) >= 8
        assert is_clean(database_url)


def test_listing_while_others_write_is_complete_and_in_order(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from storage_backend.backends.sql import listing as module

    monkeypatch.setattr(module, "PAGE", 7)
    with DatabaseStorage(database_url) as storage:
        staying = [f"{number:03}/stay" for number in range(100)]
        storage.write_many((name, b"") for name in staying)
        found = []
        for number, info in enumerate(storage.scan()):
            found.append(info.identifier)
            storage.write(f"{os.urandom(2).hex()}/{number}", b"")
            if number % 3 == 0:
                storage.delete(info.identifier)
            if number > 400:
                break
        assert found == sorted(found)
        assert len(set(found)) == len(found)
        assert set(staying) <= set(found)
        assert rows(database_url)["objects"] > 100
