"""What the program imports: what a command needs, and nothing more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from storage_backend import open_storage
from storage_backend.cli import program as group
from tests.cli.conftest import Program

CLIENTS = ("boto3", "botocore", "diskcache", "paramiko", "psycopg", "sqlalchemy")
ENGINE = "storage_backend.transfer.engine"
LAZY = ("concurrent.futures", "rich", "sqlite3", ENGINE)


def imported(environment: dict[str, str], *arguments: str | Path) -> set[str]:
    """The modules that are loaded when the program has ended."""
    run = "import sys; from storage_backend.cli import run; run(sys.argv[1:]); print('\\n', *sys.modules)"
    command = [sys.executable, "-c", run, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--version"], (*CLIENTS, *LAZY, "storage_backend.base", "storage_backend.config", "hashlib")),
        (["--help"], (*CLIENTS, *LAZY)),
        (["migrate", "--help"], (*CLIENTS, *LAZY, "storage_backend.cli.listing")),
        (["ls", "."], (*CLIENTS, *LAZY, "storage_backend.cli.objects", "storage_backend.wrappers.prefixed")),
        (["ls", "memory:"], (*CLIENTS, *LAZY, "storage_backend.backends.local")),
        (
            ["ls", "sqlite:///x.db"],
            (*set(CLIENTS) - {"sqlalchemy"}, ENGINE, "sqlalchemy.dialects.postgresql"),
        ),
        (
            ["ls", "ssh://a@127.0.0.1:9/x?agent=false"],
            (*set(CLIENTS) - {"paramiko"}, ENGINE, "asyncio", "invoke.context"),
        ),
        (["ls", "s3://bucket/#../x"], (*set(CLIENTS) - {"boto3", "botocore"}, "rich", "sqlite3", ENGINE)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_what_it_needs(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    without: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "sqlite" in arguments[-1]:
        with open_storage(arguments[-1], create=True) as storage:
            storage.write("a", b"1")
    loaded = imported(environment, *arguments)
    assert "click" in loaded
    assert sorted(loaded & set(without)) == []


def test_the_package_alone_imports_next_to_nothing() -> None:
    run = "import sys; import storage_backend; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", run], check=True, capture_output=True, text=True).stdout
    ours = {name for name in loaded.split() if name.startswith("storage_backend")}
    assert ours == {"storage_backend", "storage_backend.errors"}


def test_commands_are_completed_though_they_are_not_imported_yet() -> None:
    complete = BashComplete(group, {}, "storage-backend", "_STORAGE_BACKEND_COMPLETE")
    assert [item.value for item in complete.get_completions([], "m")] == ["migrate", "mv"]
    assert "--delete-source" in [item.value for item in complete.get_completions(["migrate"], "--d")]
    assert [item.value for item in complete.get_completions(["cache"], "c")] == ["check", "clear"]


def test_every_command_is_where_the_group_looks_for_it() -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
    assert group.get_command(context, "nonsense") is None


def test_what_is_postponed_is_there_when_it_is_used(process: Program, tmp_path: Path) -> None:
    pytest.importorskip("paramiko")
    pytest.importorskip("invoke")
    (tmp_path / "config").write_text('Match exec "test nas = %h"\nHostName 127.0.0.1\nPort 9\n')
    result = process("ls", f"ssh://ana@nas/x?agent=false&ssh_config_file={tmp_path}/config")
    assert result.code == 5
    assert "nas:9: " in result.err
