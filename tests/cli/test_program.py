"""The program as a whole: help, codes, what it prints where, and how it ends early."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import click
import pytest

from storage_backend import __version__
from storage_backend.cli import program as group
from tests.cli.conftest import Program
from tests.readme_table import README

VERBS = [
    "cache check",
    "cache clear",
    "cache stats",
    "cat",
    "checksum",
    "compact",
    "cp",
    "diff",
    "du",
    "find",
    "get",
    "ls",
    "migrate",
    "mv",
    "plan",
    "put",
    "rm",
    "stat",
    "sync",
    "tree",
    "url",
    "verify",
]


def command_of(group: click.Command, name: str) -> click.Command:
    assert isinstance(group, click.Group)
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


def test_all_verbs_are_there() -> None:
    found = []
    for name in group.list_commands(click.Context(group)):
        command = command_of(group, name)
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        found += [f"{name} {verb}".strip() for verb in inner]
    assert sorted(found) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help_with_examples(program: Program, verb: str) -> None:
    # As GNU's, these two have another -h.
    for flag in ("--help", "-h") if verb not in {"ls", "du"} else ("--help",):
        result = program(*verb.split(), flag)
        assert result.code == 0
        text = result.out.decode()
        assert "Examples:\n" in text
        assert f"    storage-backend {verb} " in text
        assert "--quiet" in text
        assert not result.err


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_the_help_parse(verb: str) -> None:
    parent = click.Context(group, **group.context_settings)
    command: click.Command = group
    for word in verb.split():
        command = command_of(command, word)
    text = command.help or ""
    lines = [line.strip() for line in text.splitlines() if f"storage-backend {verb} " in line]
    assert lines
    for line in lines:
        # of a pipeline, the part that is ours
        words = subprocess.run(
            [
                "bash",
                "-c",
                f"set -- {line[line.index('storage-backend') :].split(' | ')[0].split(' > ')[0]}; printf '%s\\0' \"$@\"",
            ],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")[1 + len(verb.split()) : -1]
        assert command.make_context(verb, words, parent=parent).params


def test_version_and_main_help(process: Program) -> None:
    assert __version__ in process("--version").out.decode()
    result = process("--help")
    assert result.code == 0
    assert all(f"  {verb.split()[0]} " in result.out.decode() for verb in VERBS)


def test_the_console_script_is_the_same_program() -> None:
    found = [
        entry.value
        for entry in importlib.metadata.entry_points(group="console_scripts")
        if entry.name == "storage-backend"
    ]
    assert found == ["storage_backend.cli:main"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "No such command"),
        (["ls", "--nonsense", "memory:"], "No such option"),
        (["ls", "ftp://host/x"], "unknown scheme 'ftp'"),
        (["ls", "sqlite:///x.db?mode=ro"], "unknown parameter 'mode'"),
        (["ls", "c:\\data"], "Windows"),
        (["ls", ""], "empty"),
        (["ls", "memory:#../x"], "outside base directory"),
        (["cat", "memory:"], 'add "#" and its identifier'),
        (["cat", "memory:#../x"], "outside base directory"),
        (["stat", "/"], "names a directory"),
        (["checksum", "-a", "nonsense", "memory:#x"], "unknown algorithm 'nonsense'"),
        (["get", "-r", "memory:"], "needs the PATH"),
        (["put", "-r", "-", "memory:"], "needs the PATH"),
        (["compact", "memory:"], "is not a database"),
        (["put", "/", "memory:"], "is a directory"),
        (["sync", "memory:", "memory:", "--workers", "0"], "--workers"),
        (["sync", "memory:", "memory:", "--pattern", "../x"], "outside base directory"),
        (["sync", "memory:", "memory:", "--verify", "md5"], "digest"),
        (["migrate", "memory:", "memory:"], "journal"),
        (["ls", "--quiet", "--verbose", "memory:"], "--quiet and --verbose contradict"),
        (["ls", "-v", "memory:", "-q"], "--quiet and --verbose contradict"),
        (["cache", "stats", "-qv", "/"], "--quiet and --verbose contradict"),
        (["ls", "postgresql://user:s3cr3t@host/db"], "PGPASSWORD"),
        (["sync", "memory:", "postgresql://user:s3cr3t@host/db"], ".pgpass"),
    ],
)
def test_wrong_usage_is_one_line_and_2(program: Program, arguments: list[str], says: str) -> None:
    result = program(*arguments)
    assert result.code == 2
    assert says in result.err + result.out.decode()
    assert "s3cr3t" not in result.err
    assert "Traceback" not in result.err
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("storage-backend: ")


def test_a_bug_is_one_line_too(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage_backend import MemoryStorage

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(MemoryStorage, "scan", broken)
    result = program("ls", "memory:")
    assert result.code == 7
    assert result.err == "storage-backend: ZeroDivisionError: oops\n"
    assert "Traceback" in program("ls", "-v", "memory:").err


def test_quiet_and_verbose(program: Program, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "link").symlink_to("/etc/passwd")
    loud = program("ls", tmp_path)
    assert "skipped" in loud.err
    assert "link" in loud.err
    assert loud.lines == ["a"]
    assert not program("ls", "-q", tmp_path).err
    assert "Traceback" in program("cat", "-v", tmp_path / "gone").err


@pytest.mark.parametrize("verb", ["ls", "tree", "find", "du", "diff"])
def test_a_pipe_that_closes_early_ends_it_quietly(
    environment: dict[str, str], tmp_path: Path, verb: str
) -> None:
    for number in range(600):
        (tmp_path / f"{number:0200}").mkdir()
        (tmp_path / f"{number:0200}" / "object").touch()
    places = [tmp_path, "memory:"] if verb == "diff" else [tmp_path]
    with subprocess.Popen(
        [sys.executable, "-m", "storage_backend", verb, *map(str, places)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 141


def on_a_terminal(
    environment: dict[str, str], *arguments: str | Path, types: bytes = b"", stderr_too: bool = True
) -> tuple[int, str]:
    """Run the program on a terminal of its own."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "storage_backend", *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower if stderr_too else subprocess.DEVNULL,
        env={**environment, "COLUMNS": "200"},
    ) as process:
        os.close(follower)
        os.write(leader, types)
        shown = b""
        readable = select.poll()
        readable.register(leader, select.POLLIN)
        while readable.poll(30_000):
            try:
                data = os.read(leader, 65536)
            except OSError:  # EIO: nobody has the other end open any more
                break
            if not data:
                break
            shown += data
        code = process.wait(timeout=30)
    os.close(leader)
    return code, shown.decode()


def test_names_are_quoted_on_a_terminal_only(
    environment: dict[str, str], process: Program, tmp_path: Path
) -> None:
    names = ["plain name", "esc\x1b[31m", "new\nline", "quote'\t", "\udcff", "bidi\u202e"]
    for name in names:
        (tmp_path / name).touch()
    code, shown = on_a_terminal(environment, "ls", tmp_path)
    assert code == 0
    assert sorted(shown.split("\r\n")) == sorted(
        [
            "",
            "plain name",
            r"$'esc\x1b[31m'",
            r"$'new\nline'",
            r"$'quote\'\t'",
            r"$'\xff'",
            r"$'bidi\xe2\x80\xae'",
        ]
    )
    # What the terminal shows, the shell reads back.
    for line in filter(None, shown.split("\r\n")):
        word = line if line.startswith("$'") else f"'{line}'"
        read = subprocess.run(["bash", "-c", f"printf %s {word}"], check=True, capture_output=True).stdout
        assert os.fsdecode(read) in names
    raw = process("ls", "-0", tmp_path).out
    assert sorted(raw.split(b"\0")[:-1]) == sorted(os.fsencode(name) for name in names)
    assert json.loads(process("ls", "--json", tmp_path).out.splitlines()[-1])["identifier"] == "\udcff"


@pytest.mark.parametrize("verb", ["find", "checksum -r", "tree", "plan", "verify"])
def test_no_name_does_anything_to_a_terminal(environment: dict[str, str], tmp_path: Path, verb: str) -> None:
    (tmp_path / "place").mkdir()
    for name in ("esc\x1b[5m", "c1\x9b5m", "bidi\u202e", "bell\x07", "back\r"):
        (tmp_path / "place" / name).write_text(name)
    (tmp_path / "place" / "link\x1b[5m").symlink_to("/etc/passwd")  # complained of
    other = ["memory:"] if verb in {"plan", "verify"} else []
    _, shown = on_a_terminal(environment, *verb.split(), tmp_path / "place", *other)
    assert "esc\\x1b[5m" in shown
    assert not re.search("\x1b\\[5m|\x9b|\u202e|\x07|\r(?!\n)", shown.replace("\x1b[", ""))
    assert "\x1b[5m" not in shown


def test_rm_r_asks_on_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    code, shown = on_a_terminal(environment, "rm", "-r", tmp_path, types=b"n\n")
    assert code == 0
    assert f"remove 2 objects in {tmp_path.as_uri()}?" in shown
    assert len(list(tmp_path.iterdir())) == 2
    code, shown = on_a_terminal(environment, "rm", "-r", tmp_path, types=b"y\n")
    assert code == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["s3://bucket", "ssh://host/x", "cached+memory:"])
def test_help_and_readme_have_every_parameter_of_a_url(program: Program, url: str) -> None:
    known = program("ls", f"{url}?nonsense=1").err.rpartition(" takes ")[2].partition(" (")[0].strip()
    names = [name.strip() for name in known.split(",")]
    assert len(names) > 4
    for text in (program("--help").out.decode(), README.read_text(encoding="utf-8")):
        assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
