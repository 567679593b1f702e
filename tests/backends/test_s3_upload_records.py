"""What is remembered of uploads, by real processes that are killed, fork and compete."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage_backend.backends.s3.upload_records import UploadRecord, UploadRecords
from tests.backends.local_ways import as_nobody, in_child

PLACE = "s3://bucket/prefix"
ODD_KEYS = [
    "a",
    "",
    "new\nline",
    "a\0b",
    "é" * 512,
    "x" * 1024,
    "\x01" * 1024,
    '"}\\',
    "\u2028",
    "\udcff",
    "../up",
]

PROLOGUE = """
import os, sys
from pathlib import Path
from storage_backend.backends.s3.upload_records import UploadRecords

def say(*words):
    print(*words, flush=True)

directory, place = Path(sys.argv[1]), "s3://bucket/prefix"
records = UploadRecords(directory)
"""


@contextmanager
def process(directory: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs *program*, which ends with its standard input at the latest."""
    with subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + program, directory, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], text: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{text}\n")
    child.stdin.flush()


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()


def remembered(directory: Path, key: str = "key") -> tuple[str | None, int | None]:
    record = UploadRecords(directory).claim(PLACE, key)
    assert record.held
    record.release()
    return record.upload_id, record.part_size


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "uploads"


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def only_file(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


class TestRecord:
    def test_what_was_saved_is_found_until_it_is_cleared(self, directory: Path) -> None:
        records = UploadRecords(directory)
        first = records.claim(PLACE, "key")
        assert (first.held, first.upload_id, first.part_size) == (True, None, None)
        first.save("one", 1)
        first.save("two", 2)
        first.release()
        second = records.claim(PLACE, "key")
        assert (second.held, second.upload_id, second.part_size) == (True, "two", 2)
        second.clear()
        second.save("three", 3)
        second.release()
        third = records.claim(PLACE, "key")
        assert third.upload_id == "three"
        third.clear()
        third.release()
        assert not [*directory.iterdir()]
        assert remembered(directory) == (None, None)

    def test_claimed_and_released_it_leaves_nothing(self, directory: Path) -> None:
        before = names(Path("/dev/fd"))
        record = UploadRecords(directory).claim(PLACE, "key")
        record.release()
        record.release()
        record.save("x", 1)
        record.clear()
        assert not record.held
        assert not [*directory.iterdir()]
        assert names(Path("/dev/fd")) == before

    def test_nobody_else_may_look_inside(self, directory: Path) -> None:
        record = UploadRecords(directory, clock=lambda: 1234.5).claim(PLACE, "key")
        record.save("upload", 5)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(only_file(directory).stat().st_mode) == 0o600
        assert json.loads(only_file(directory).read_text()) == {
            "format": 1,
            "place": PLACE,
            "key": "key",
            "upload_id": "upload",
            "part_size": 5,
            "started": 1234,
        }
        record.release()

    def test_odd_keys_are_told_apart(self, directory: Path) -> None:
        records = UploadRecords(directory)
        for number, key in enumerate(ODD_KEYS, 1):
            for place in (PLACE, "s3://other"):
                record = records.claim(place, key)
                assert record.held
                assert record.upload_id is None
                record.save(f"{place} {number}", number)
                record.release()
        for number, key in enumerate(ODD_KEYS, 1):
            assert remembered(directory, key) == (f"{PLACE} {number}", number)

    def test_one_thread_holds_it(self, directory: Path) -> None:
        records = UploadRecords(directory)
        barrier = threading.Barrier(8)
        taken: list[UploadRecord] = []

        def claim() -> None:
            barrier.wait()
            taken.append(records.claim(PLACE, "key"))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (holder,) = [record for record in taken if record.held]
        holder.save("holder", 1)
        for record in taken:
            if record is not holder:
                record.save("other", 2)
                record.clear()
                record.release()
        holder.release()
        assert remembered(directory) == ("holder", 1)

    def test_growing_without_end_it_is_still_read(self, directory: Path) -> None:
        key = "\x01" * 1024
        record = UploadRecords(directory).claim(PLACE, key)
        for number in range(1, 41):
            record.save(f"upload {number}", number)
        record.release()
        assert only_file(directory).stat().st_size > 4 * (64 << 10) // 2
        assert remembered(directory, key) == ("upload 40", 40)

    def test_file_that_somebody_removed_is_not_removed_again(self, directory: Path) -> None:
        records = UploadRecords(directory)
        first = records.claim(PLACE, "key")
        shutil.rmtree(directory)
        second = records.claim(PLACE, "key")
        second.save("second", 2)
        first.clear()
        first.release()
        second.release()
        assert remembered(directory) == ("second", 2)


class TestDamage:
    def saved(self, directory: Path, *uploads: tuple[str, int]) -> bytes:
        record = UploadRecords(directory).claim(PLACE, "key")
        for upload_id, part_size in uploads:
            record.save(upload_id, part_size)
        record.release()
        return only_file(directory).read_bytes()

    def test_torn_record_is_none_or_the_one_before(self, directory: Path) -> None:
        content = self.saved(directory, ("first", 1), ("second", 2))
        middle = content.index(b"\n") + 1
        for cut in range(len(content) + 1):
            only_file(directory).write_bytes(content[:cut])
            record = UploadRecords(directory).claim(PLACE, "key")
            expected = (None, None) if cut < middle else ("first", 1) if cut < len(content) else ("second", 2)
            assert (record.held, record.upload_id, record.part_size) == (True, *expected), cut
            record.save("third", 3)
            record.release()
            assert remembered(directory) == ("third", 3), cut

    @pytest.mark.parametrize(
        "content",
        [
            b"\n",
            b"\0" * 300 + b"\n",
            b"\xff\xfe\n",
            b"[]\n",
            b"[" * 60_000 + b"\n",
            b"{}\n",
            b"null\n",
            b"x" * 200_000,
            b"\n" * 200_000,
        ],
    )
    def test_what_is_no_record_is_overwritten(
        self, directory: Path, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.saved(directory, ("first", 1))
        only_file(directory).write_bytes(content)
        assert remembered(directory) == (None, None)
        assert "is not a record of 'key'" in caplog.text
        assert only_file(directory).read_bytes() == content  # until there is something to save
        self.saved(directory, ("second", 2))
        assert remembered(directory) == ("second", 2)
        assert only_file(directory).read_bytes().count(b"\n") == 1

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", 2),
            ("format", None),
            ("place", "s3://other"),
            ("key", "other"),
            ("key", 1),
            ("upload_id", ""),
            ("upload_id", None),
            ("part_size", 0),
            ("part_size", "5"),
            ("part_size", True),
            ("more", 1),
        ],
    )
    def test_record_of_something_else_is_none(self, directory: Path, name: str, value: object) -> None:
        fields = json.loads(self.saved(directory, ("first", 1)))
        only_file(directory).write_text(json.dumps(fields | {name: value}) + "\n")
        assert remembered(directory) == (None, None)

    def test_what_is_no_file_is_neither_followed_nor_waited_for(
        self, directory: Path, tmp_path: Path
    ) -> None:
        self.saved(directory, ("first", 1))
        path = only_file(directory)
        (tmp_path / "precious").write_text("precious")
        makers: list[Callable[[], object]] = [
            lambda: path.symlink_to(tmp_path / "precious"),
            path.mkdir,
            lambda: os.mkfifo(path),
        ]
        path.unlink()
        for make in makers:
            make()
            record = UploadRecords(directory).claim(PLACE, "key")
            record.save("x", 1)
            record.release()
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
        assert (tmp_path / "precious").read_text() == "precious"


class TestNoRoom:
    def test_directory_that_cannot_be_written_is_no_error(self) -> None:
        with tempfile.TemporaryDirectory(prefix="storage-backend-test-") as name:
            place = Path(name)
            place.chmod(0o755)
            full = UploadRecords(place).claim(PLACE, "old")
            full.save("upload", 1)
            full.release()

            def act() -> list[object]:
                answers: list[object] = []
                for directory in (place, place / "below", Path("/proc/none"), Path("/dev/null/uploads")):
                    for key in ("new", "old"):
                        record = UploadRecords(directory).claim(PLACE, key)
                        record.save("x", 1)
                        record.clear()
                        record.release()
                        answers.append((record.held, record.upload_id))
                return answers

            assert as_nobody(act) == [(False, None)] * 8
            assert remembered(place, "old") == ("upload", 1)

    @pytest.mark.parametrize("room", [0, 10])
    def test_full_disk_keeps_what_was_there(self, directory: Path, room: int) -> None:
        records = UploadRecords(directory)
        old = records.claim(PLACE, "old")
        old.save("upload", 1)
        old.release()
        size = only_file(directory).stat().st_size

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, size + room))

        def act() -> list[object]:
            record = records.claim(PLACE, "old")
            record.save("later", 2)
            record.save("still later", 2)
            record.release()
            limited = records.claim(PLACE, "x" * 1024)
            limited.save("x", 1)
            limited.release()
            return [record.upload_id]

        assert in_child(limit, act) == ["upload"]
        assert only_file(directory).stat().st_size == size
        assert remembered(directory, "old") == ("upload", 1)


@pytest.mark.soak
class TestKilled:
    def test_next_process_finds_what_a_killed_one_saved(self, directory: Path) -> None:
        program = """
record = records.claim(place, "key")
record.save("upload", 7)
say(record.held)
sys.stdin.read()
"""
        with process(directory, program) as child:
            assert line(child) == "True"
            assert not UploadRecords(directory).claim(PLACE, "key").held
            kill(child)
        assert remembered(directory) == ("upload", 7)

    def test_killed_before_saving_there_is_nothing(self, directory: Path) -> None:
        with process(directory, 'record = records.claim(place, "key"); say(1); sys.stdin.read()') as child:
            assert line(child) == "1"
            kill(child)
        assert remembered(directory) == (None, None)
        assert not [*directory.iterdir()]

    def test_killed_at_any_moment_it_leaves_a_whole_record(self, directory: Path) -> None:
        program = """
import itertools
record = records.claim(place, "key")
first = int(sys.argv[2])
for number in itertools.count(first):
    record.save(f"{number} " * 200, number)
    if number == first:
        say("saving")
    if number % 50 == 0:
        record.clear()
"""
        choice = random.Random(3)
        some = 0
        for _ in range(8):
            with process(directory, program, str(choice.randrange(1, 10_000))) as child:
                assert line(child) == "saving"
                threading.Event().wait(choice.random() / 50)  # any moment will do
                kill(child)
            upload_id, part_size = remembered(directory)
            if upload_id is not None:
                some += 1
                assert upload_id == f"{part_size} " * 200
        assert some


class TestForked:
    def test_child_neither_keeps_nor_changes_the_parents_record(self, directory: Path) -> None:
        program = """
record = records.claim(place, "key")
record.save("parents", 1)
if os.fork() == 0:
    held = record.held
    record.save("childs", 2)
    record.clear()
    record.release()
    say(held, records.claim(place, "key").held)
    sys.stdin.readline()
    say("child lives", os.getppid())
    sys.stdin.read()
    os._exit(0)
import signal
signal.pause()
"""
        with process(directory, program) as parent:
            assert line(parent) == "False False"
            assert not UploadRecords(directory).claim(PLACE, "key").held
            kill(parent)
            assert remembered(directory) == ("parents", 1)
            tell(parent, "")
            assert line(parent).startswith("child lives")

    def test_fork_in_the_middle_of_a_claim_inherits_no_lock(self, directory: Path) -> None:
        if not Path("/proc/self/fd").is_dir():
            pytest.skip("tells descriptors by /proc")
        program = """
import threading
stop, rounds = threading.Event(), 0

def upload():
    global rounds
    while not stop.is_set():
        record = records.claim(place, "key")
        assert record.held
        record.save("upload", 1)
        record.release()
        rounds += 1

thread = threading.Thread(target=upload)
thread.start()
inherited = forks = 0
while thread.is_alive() and (forks < 150 or rounds < 150):
    forks += 1
    child = os.fork()
    if child == 0:
        names = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                names.append(os.readlink(f"/proc/self/fd/{fd}"))
            except OSError:
                pass
        os._exit(any(name.startswith(f"{directory}/") for name in names))
    inherited += os.waitpid(child, 0)[1] != 0
say(inherited, thread.is_alive())
stop.set()
"""
        with process(directory, program) as parent:
            assert line(parent) == "0 True"


@pytest.mark.soak
class TestManyProcesses:
    def test_one_holds_it_at_a_time(self, directory: Path) -> None:
        # Who holds it makes a file that must not be there yet, so two at a time would show.
        program = """
import random
choice = random.Random(int(sys.argv[2]))
mine = directory.parent / "held"
sys.stdin.readline()
held = refused = 0
while held < 300:
    record = records.claim(place, "key")
    if not record.held:
        refused += 1
        continue
    held += 1
    os.close(os.open(mine, os.O_CREAT | os.O_EXCL))
    if record.upload_id is not None and record.upload_id != f"{record.part_size}":
        say("torn")
    for _ in range(choice.randrange(3)):
        number = choice.randrange(1, 1_000_000)
        record.save(f"{number}", number)
    if choice.randrange(4):
        record.clear()
    mine.unlink()
    record.release()
say(held, refused)
"""
        directory.parent.mkdir()
        with process(directory, program, "0") as first:
            children = [first]
            others = [process(directory, program, str(seed)) for seed in range(1, 8)]
            try:
                children += [other.__enter__() for other in others]
                for child in children:
                    tell(child, "go")
                results = [line(child).split() for child in children]
            finally:
                for other in others:
                    other.__exit__(None, None, None)
        assert [held for held, _ in results] == ["300"] * 8
        assert sum(int(refused) for _, refused in results) > 100
        record = UploadRecords(directory).claim(PLACE, "key")
        assert record.held
        record.clear()
        record.release()
        assert not [*directory.iterdir()]
