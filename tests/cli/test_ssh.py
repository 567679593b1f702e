"""The command line and a server reached by SSH."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.ssh_proxy import Proxy
from tests.ssh_servers import SSHPlace

CONTENT = b"one\n"


@pytest.fixture
def at(openssh_place: SSHPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes the location of a path beneath the place."""
    pytest.importorskip("paramiko")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = openssh_place
    parameters = urllib.parse.urlencode(
        {"key_filename": place.key_filename, "known_hosts": place.known_hosts, "agent": "false"}
    )

    def at(path: str) -> str:
        return f"ssh://{place.user}@{place.host}:{place.port}{place.base}{path}?{parameters}"

    return at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(CONTENT)
    (folder / "sub" / "b c;d.txt").write_bytes(CONTENT * 2)
    return folder


def test_folder_there_and_back(
    program: Program, at: Callable[[str], str], folder: Path, tmp_path: Path
) -> None:
    assert program("migrate", folder, at("/copy")).code == 0
    again = program("migrate", folder, at("/copy"), "--json")
    assert again.code == 0
    assert '"copied": 0' in again.lines[-1]
    assert program("verify", folder, at("/copy")).code == 0
    assert program("sync", at("/copy/"), tmp_path / "back").code == 0
    assert (tmp_path / "back" / "sub" / "b c;d.txt").read_bytes() == CONTENT * 2


def test_objects(program: Program, at: Callable[[str], str], folder: Path, tmp_path: Path) -> None:
    assert program("put", folder / "a.txt", at("/x/one.txt")).code == 0
    assert program("put", folder / "a.txt", at("/x/")).code == 0
    assert program("cat", at("/x/one.txt")).out == CONTENT
    assert program("get", at("/x/one.txt"), tmp_path / "got").code == 0
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert program("ls", at("/x")).lines == ["a.txt", "one.txt"]
    assert program("ls", at("/x/one.txt")).lines == ["one.txt"]
    assert program("ls", at("/")).lines == ["x/"]
    assert program("cp", at("/x/one.txt"), at("/y%20z/two.txt")).code == 0
    assert program("mv", at("/x/a.txt"), at("/y%20z/")).code == 0
    assert program("rm", at("/x/one.txt")).code == 0
    assert program("ls", "-R", at("/")).lines == ["y z/a.txt", "y z/two.txt"]
    assert program("rm", "-r", "--yes", at("/y%20z")).code == 0
    assert program("ls", "-R", at("/")).lines == []


def test_what_is_found_in_a_folder_is_used_over_one_connection(
    program: Program, openssh_place: SSHPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = openssh_place
    for name in ("a/1", "a/2", "a/3", "b/4"):
        (place.local / name).parent.mkdir(exist_ok=True)
        (place.local / name).write_text(name)
    with Proxy(place.host, place.port) as proxy:
        base = f"ssh://{place.user}@{proxy.host}:{proxy.port}{place.base}/?key_filename={place.key_filename}&agent=false"
        found = program("find", base, "--name", "[1-9]").lines
        assert len(found) == 4
        for verb in ("stat", "checksum", "cat", "rm"):
            before = proxy.accepted
            assert program(verb, *found).code == 0
            assert proxy.accepted - before == 2  # folders
    assert not [path for path in place.local.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("location", "code", "says"),
    [
        ("ssh:///x", 2, "has no host"),
        ("ssh://ana:s3cr3t@host/x", 2, "SSH key or agent"),
        ("ssh://ana@host/x?password=s3cr3t", 2, "password=env:NAME"),
        ("ssh://ana@host/x?shell=perhaps", 2, "shell"),
        ("ssh://ana@host/x?colour=red", 2, "unknown parameter 'colour'"),
        ("ssh://ana@host:port/x", 2, "not a host and port"),
        ("ssh://ana@127.0.0.1:9,127.0.0.1:11/x?agent=false", 5, "no endpoint works: 127.0.0.1:9: "),
    ],
)
def test_wrong_location_is_told(
    program: Program, at: Callable[[str], str], location: str, code: int, says: str
) -> None:
    result = program("ls", location)
    assert result.code == code
    assert says in result.err
    assert "s3cr3t" not in result.err


def test_missing_place_is_told(program: Program, at: Callable[[str], str]) -> None:
    for command in (("ls", at("/gone")), ("cat", at("/gone")), ("sync", at("/gone"), "memory:")):
        assert program(*command).code == 3


def test_names_that_are_not_utf8(
    program: Program, at: Callable[[str], str], openssh_place: SSHPlace, tmp_path: Path
) -> None:
    (tmp_path / "\udcff").write_bytes(CONTENT)
    for spelt in ("\udce9/\udcff", "%E9/%FE"):  # raw on the command line, or as the listings print it
        assert program("put", tmp_path / "\udcff", at(f"/{spelt}")).code == 0
        assert program("cat", at(f"/{spelt}")).out == CONTENT
    assert sorted(path.name for path in (openssh_place.local / "\udce9").iterdir()) == ["\udcfe", "\udcff"]
    assert program("ls", "-0", at("/\udce9")).out == b"\xfe\0\xff\0"
    found = program("find", at("/")).lines
    assert len(found) == 2
    assert program("rm", *found).code == 0
