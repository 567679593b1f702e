"""Standard streams that are closed, have no reader, are full, or do not wait: the work is done, and the exit code is true."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

import pytest

from storage_backend import CachedStorage, LocalStorage

BIG = os.urandom(1_500_000)  # more than pipes and buffers hold


class Ended(NamedTuple):
    code: int
    out: bytes
    err: str


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two places that differ, in the directory that commands are run in."""
    for name in ("one/a", "one/d/b", "two/a", "two/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "big").write_bytes(BIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(
    environment: dict[str, str],
    command: str,
    closed: Iterable[int] = (),
    *,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Ended:
    """Run the program with some of its descriptors closed, or what is given for its output."""
    closing = " ".join(f"{number}>&-" for number in closed)
    arguments = [sys.executable, "-m", "storage_backend", *command.split()]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        timeout=60,
    )
    return Ended(done.returncode, done.stdout or b"", (done.stderr or b"").decode())


CLOSINGS = [closed for count in (1, 2, 3) for closed in itertools.combinations(range(3), count)]
SHOWING = ["cat one/a", "--help"]
SHOWING_TOO = [
    "get one/a -",
    "ls one",
    "stat one/a",
    "checksum one/a",
    "find one",
    "du one",
    "tree one",
    "url one/a",
    "plan one two",
    "sync -n one two",
    "cache stats kept",
    "ls --help",
    "--version",
]
WORKING = [
    (0, "sync one new", "new/d/b"),
    (0, "rm -r -y one", ""),
    (4, "verify one two", ""),
    (3, "ls nosuch", ""),
]
WORKING_TOO = [
    (2, "nonsense", ""),
    (4, "diff one two", ""),
    (0, "get one/a new", "new"),
    (0, "migrate --json one new", "new/d/b"),
    (0, "sync --json one new", "new/d/b"),
    (0, "migrate one new", "new/d/b"),
    (0, "cp -r one new", "new/d/b"),
    (0, "get -r one new", "new/d/b"),
    (0, "put -r one new", "new/d/b"),
    (0, "put one/a new/a", "new/a"),
    (0, "cp one/a new", "new"),
    (0, "mv one/a new", "new"),
    (0, "rm one/a", ""),
    (0, "diff one one", ""),
    (4, "diff --checksum one two", ""),
    (0, "cache clear kept", ""),
    (0, "cache check kept", ""),
    (3, "sync nosuch new", ""),
    (2, "sync --workers 0 one new", ""),
]


def keep(here: Path) -> None:
    with CachedStorage(LocalStorage(here / "one"), here / "kept") as cached:
        assert cached.read("a") == b"one/a"


@pytest.mark.parametrize(
    ("code", "command", "made"),
    WORKING + [pytest.param(*case, marks=pytest.mark.soak) for case in WORKING_TOO],
)
def test_work_is_done_whatever_is_closed(  # noqa: PLR0917 - pytest gives them by name
    environment: dict[str, str], here: Path, soak: bool, code: int, command: str, made: str
) -> None:
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    if "kept" in command:
        keep(here)
    for closed in CLOSINGS if soak else CLOSINGS[-1:]:
        for path, content in before.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        subprocess.run(["rm", "-rf", "new"], check=True)
        ended = run({**environment, "XDG_STATE_HOME": str(here / f"state{closed}")}, command, closed)
        assert ended.code == code, (closed, ended)
        assert "Traceback" not in ended.err
        if made:
            assert (here / made).read_bytes() == f"one/{made.removeprefix('new').lstrip('/') or 'a'}".encode()
        elif "rm" in command:
            assert not (here / "one/a").exists()


@pytest.mark.parametrize(
    "command", SHOWING + [pytest.param(command, marks=pytest.mark.soak) for command in SHOWING_TOO]
)
def test_what_is_only_shown_must_be_seen(
    environment: dict[str, str], here: Path, soak: bool, command: str
) -> None:
    if "kept" in command:
        keep(here)
    for closed in CLOSINGS if soak else [(1,)]:
        ended = run(environment, command, closed)
        assert ended.code == (1 if 1 in closed else 0), (closed, ended)
        shown = "storage-backend: cannot write to standard output: it is closed\n"
        assert ended.err == (shown if ended.code and 2 not in closed else "")
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        ended = run(environment, command, stdout=full, stderr=subprocess.PIPE)
    assert (ended.code, ended.err) == (
        7,
        "storage-backend: cannot write to standard output: No space left on device\n",
    )


def test_nothing_gets_the_number_of_a_closed_stream(environment: dict[str, str], here: Path) -> None:
    """Else the complaint, which goes to descriptor 2, would be in the object."""
    with (here / "one/f").open("wb") as file:
        file.truncate(8 << 20)  # a large one, so that it is under way while others are told of
    (here / "one/link").symlink_to("/etc/passwd")
    for target in ("new", "sqlite:///new.db"):
        ended = run(environment, f"sync -v one {target}", (0, 1, 2))
        assert ended.code == 1  # of the link
        (here / "one/link").unlink()
        assert run(environment, f"verify one {target}").code == 0
        (here / "one/link").symlink_to("/etc/passwd")


@pytest.mark.parametrize("command", ["sync --json one new", "migrate one new", "rm -r -y one"])
def test_work_goes_on_without_a_reader(environment: dict[str, str], here: Path, command: str) -> None:
    for number in range(300):
        (here / "one" / f"{number:0200}").touch()
    reader, writer = os.pipe()
    os.close(reader)
    # Nobody reads the complaints either.
    (here / "one/link").symlink_to("/etc/passwd")
    ended = run(environment, command, stdout=writer, stderr=writer)
    os.close(writer)
    removing = command.startswith("rm")
    assert ended.code == (0 if removing else 1)  # of the link
    found = [path for path in (here / ("one" if removing else "new")).rglob("*") if path.is_file()]
    assert len([path for path in found if not path.is_symlink()]) == (0 if removing else 302)


def test_work_on_a_full_disk_is_done_and_the_loss_of_the_output_told(
    environment: dict[str, str], here: Path
) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        ended = run(environment, "sync one new", stdout=full, stderr=subprocess.PIPE)
        assert (ended.code, len(ended.err.splitlines())) == (7, 1)
        assert "No space left on device; all else was done" in ended.err
        assert (here / "new/d/b").read_bytes() == b"one/d/b"
        # And a full disk under the log of errors changes nothing.
        assert run(environment, "sync one newer", stderr=full, stdout=subprocess.PIPE).code == 0
        assert run(environment, "ls nosuch", stderr=full, stdout=subprocess.PIPE).code == 3


def test_output_that_is_cut_off_by_a_limit_is_no_success(environment: dict[str, str], here: Path) -> None:
    with (here / "out").open("wb") as out:
        done = subprocess.run(
            ["prlimit", "--fsize=1400000", sys.executable, "-m", "storage_backend", "cat", "big"],
            check=False,
            stdout=out,
            stderr=subprocess.PIPE,
            env={**environment, "PYTHONUNBUFFERED": "1"},
        )
    assert done.returncode == 7
    assert b"cannot write to standard output: File too large" in done.stderr


def test_input_that_cannot_be_read_is_not_an_empty_object(environment: dict[str, str], here: Path) -> None:
    for closed in ((0,), (0, 1, 2)):
        ended = run(environment, "put - one/a", closed)
        assert ended.code == 1
        assert ended.err in {"", "storage-backend: cannot read standard input: it is closed\n"}
        assert (here / "one/a").read_bytes() == b"one/a"
    assert run(environment, "cat one/a - one/d/b", (0,))[:2] == (1, b"one/aone/d/b")
    ended = run(environment, "rm -r one", (0,))
    assert (ended.code, "--yes" in ended.err) == (2, True)


def test_streams_that_do_not_wait_lose_nothing(environment: dict[str, str], here: Path) -> None:
    arguments = [sys.executable, "-m", "storage_backend"]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([*arguments, "cat", "big"], stdout=writer, env=environment) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as output:
            first = output.read(1)
            assert process.poll() is None
            assert first + output.read() == BIG
    assert process.returncode == 0
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with subprocess.Popen([*arguments, "put", "-", "new"], stdin=reader, env=environment) as process:
        os.close(reader)
        with os.fdopen(writer, "wb") as source:
            source.write(BIG)
    assert process.returncode == 0
    assert (here / "new").read_bytes() == BIG


def test_json_goes_on_to_a_log_while_errors_go_nowhere(environment: dict[str, str], here: Path) -> None:
    ended = run(environment, "sync --json one new", (0, 2))
    assert json.loads(ended.out.splitlines()[-1])["copied"] == 2
