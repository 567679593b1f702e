"""What comes to nothing leaves nothing: dry runs, failed commands, and places that are opened to be read."""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.servers import PostgreSQL
from tests.ssh_servers import SSHPlace


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that commands are run in, with a folder `src` in it, and a database `full.db`."""
    here = tmp_path / "here"
    (here / "src").mkdir(parents=True)
    (here / "src" / "a").write_bytes(b"1")
    monkeypatch.setenv("HOME", str(here / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(here / "config"))
    monkeypatch.chdir(here)
    return here


def found(here: Path) -> list[str]:
    paths = [*here.rglob("*"), *(here.parent / "state").rglob("*.db")]
    return sorted(os.path.relpath(path, here) for path in paths if "src" not in path.parts)


FAILING = [
    (3, "migrate sqlite:///nosuch.db out"),
    (3, "migrate sqlite:///nosuch.db sqlite:///out.db"),
    (3, "migrate cached+sqlite:///nosuch.db?cache_dir=kept out"),
    (3, "migrate nosuch out"),
    (3, "sync nosuch out/deep/er"),
    (3, "sync src/ sqlite:///nodir/out.db"),
    (2, "sync --pattern ../x src out"),
    (2, "migrate --workers 0 src out"),
    (2, "migrate --delete-source --verify size src out"),
    (2, "sync src src/inside"),
    (2, "sync src src/a/beneath"),
    (2, "sync src sqlite:///out.db?mode=x"),
    (2, "sync src out --journal x"),
    (3, "get -r nosuch out"),
    (3, "get -r sqlite:///nosuch.db out"),
    (3, "get sqlite:///nosuch.db#x out/x"),
    (3, "get src/nosuch out/x"),
    (3, "put nosuch out/"),
    (3, "put nosuch sqlite:///out.db#x"),
    (3, "put -r nosuch out"),
    (3, "cp src/nosuch out/x"),
    (3, "cp sqlite:///nosuch.db#x out/x"),
    (3, "mv src/nosuch sqlite:///out.db#x"),
]
READING = [
    (3, "ls nosuch"),
    (3, "ls sqlite:///nosuch.db"),
    (3, "ls cached+sqlite:///nosuch.db?cache_dir=kept"),
    (3, "ls cached+sqlite:///nosuch.db?cache_dir=kept&cache_engine=diskcache"),
    (3, "ls cached+sqlite:///nosuch.db"),
    (3, "cat sqlite:///nosuch.db#x"),
    (3, "stat nosuch/x"),
    (3, "checksum -r nosuch"),
    (3, "rm nosuch/x"),
    (3, "rm -r -y sqlite:///nosuch.db"),
    (3, "url nosuch/x"),
    (3, "verify src nosuch"),
    (3, "verify src sqlite:///nosuch.db"),
    (3, "cache stats nosuch"),
    (3, "cache check nosuch"),
    (3, "cache clear nosuch"),
]
DRY = [
    "plan src {}",
    "sync -n src {}",
    "sync -n --delete src {}",
    "migrate -n src {}",
    "migrate -n --delete-source src {}",
]


@pytest.mark.parametrize(("code", "command"), FAILING + READING)
def test_a_failed_command_leaves_nothing(program: Program, here: Path, code: int, command: str) -> None:
    result = program(*command.split())
    assert (result.code, found(here)) == (code, []), result.err


@pytest.mark.parametrize("command", DRY)
@pytest.mark.parametrize(
    "target", ["out", "out/deep/er", "sqlite:///out.db", "cached+sqlite:///out.db?cache_dir=kept"]
)
def test_a_dry_run_into_a_new_place_says_what_it_would_do(
    program: Program, here: Path, command: str, target: str
) -> None:
    result = program(*command.format(target).split())
    assert (result.code, result.err) == (0, "")
    assert result.lines[0].split() == ["copy/missing", "a"]
    assert found(here) == []
    # The run itself does it.
    if not command.startswith("plan"):
        real = program(*command.replace(" -n", "").format(target).split())
        assert (real.code, real.err) == (0, "")
        assert found(here) != []


def test_a_dry_run_refuses_what_the_run_would(program: Program, here: Path) -> None:
    for command, says in [
        ("migrate --delete-source src memory: --journal j.db", "--no-flush"),
        ("sync src src/inside", "inside the source"),
        ("sync src src/a/beneath", "is not a directory"),
        ("sync src sqlite:///nodir/out.db", "no directory"),
    ]:
        real, dry = program(*command.split()), program(*command.split(), "--dry-run")
        assert says in real.err
        assert (real.code, real.err) == (dry.code, dry.err)
        assert found(here) == []


def test_an_empty_source_makes_no_place(program: Program, here: Path) -> None:
    (here / "src" / "a").unlink()
    assert program("sync", "src", "out").code == 0
    assert program("sync", "src", "sqlite:///out.db").code == 0
    assert found(here) == []


def test_a_place_that_vanishes_is_not_made_again(here: Path) -> None:
    from storage_backend import StorageError, open_storage

    storage = open_storage("out", create=True)
    assert storage.list() == []
    assert not storage.exists("x")
    assert storage.flush()
    storage.write("x", b"1")
    (here / "out" / "x").unlink()
    (here / "out").rmdir()
    with pytest.raises(StorageError, match="does not exist any more"):
        storage.write("x", b"1")


def test_database_of_a_server(
    program: Program, here: Path, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = "SELECT count(*) FROM information_schema.tables WHERE table_name LIKE 'sb_%'"
    with postgresql.database() as name:
        url = postgresql.url(name)
        for command in DRY:
            result = program(*(word.format(url) for word in command.split()))
            assert (result.code, result.err) == (0, "")
            assert result.lines[0].split() == ["copy/missing", "a"]
        assert program("sync", "sqlite:///nosuch.db", url).code == 3
        assert program("ls", url).code == 3
        assert postgresql.execute(tables, name) == [(0,)]
        assert program("sync", "src", url).code == 0
        assert program("ls", url).lines == ["a"]


def test_bucket(program: Program, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with S3Server() as server:
        for name, value in {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_CONFIG_FILE": os.devnull,
        }.items():
            monkeypatch.setenv(name, value)
        for command in DRY:
            result = program(*command.format("s3://new/x").split())
            assert (result.code, result.err) == (0, "")
            assert result.lines[0].split() == ["copy/missing", "a"]
        assert program("sync", "sqlite:///nosuch.db", "s3://new").code == 3
        assert program("ls", "s3://new").code == 3
        assert program("get", "-r", "s3://new", "out").code == 3
        assert found(here) == []
        assert program("sync", "src", "s3://new").code == 0
        assert server.objects("new") == {"a": b"1"}


def test_folder_of_a_server(
    program: Program, here: Path, at: Callable[[str], str], openssh_place: SSHPlace
) -> None:
    for command in DRY:
        result = program(*(word.format(at("/new/x")) for word in command.split()))
        assert (result.code, result.err) == (0, "")
        assert result.lines[0].split() == ["copy/missing", "a"]
    assert program("sync", "sqlite:///nosuch.db", at("/new")).code == 3
    assert program("ls", at("/new/")).code == 3
    assert program("get", "-r", at("/new"), "out").code == 3
    assert list(openssh_place.local.iterdir()) == []
    assert found(here) == []
    assert program("sync", "src", at("/new/x")).code == 0
    assert (openssh_place.local / "new" / "x" / "a").read_bytes() == b"1"


@pytest.fixture
def at(openssh_place: SSHPlace) -> Callable[[str], str]:
    """Makes the location of a path beneath the place."""
    pytest.importorskip("paramiko")
    place = openssh_place
    parameters = {"key_filename": place.key_filename, "known_hosts": place.known_hosts, "agent": "false"}

    def at(path: str) -> str:
        return f"ssh://{place.user}@{place.host}:{place.port}{place.base}{path}?{urllib.parse.urlencode(parameters)}"

    return at
