"""Arguments are bytes: a name that is not UTF-8, or that the locale reads otherwise, names that very file, in and out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from storage_backend import CachedStorage, open_storage
from storage_backend.identifiers import decode
from tests.cli.conftest import Program

NAMES = [b"caf\xe9", b"caf\xc3\xa9", b"d\xff/in\xfe", b"new\nline", b"\xc3", b"%E9"]
LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # as in any locale that is not UTF-8
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A folder whose name is not UTF-8, with files of such names, in the directory that commands are run in."""
    folder = os.fsencode(tmp_path) + b"/s\xe9"
    for name in NAMES:
        os.makedirs(os.path.dirname(folder + b"/" + name), exist_ok=True)  # noqa: PTH103, PTH120 - bytes
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(name)
    monkeypatch.chdir(tmp_path)
    return folder


def read(path: bytes) -> bytes:
    return Path(os.fsdecode(path)).read_bytes()


@pytest.mark.parametrize("locale", LOCALES, ids=["C", "no UTF-8"])
def test_a_name_is_that_of_the_file_whatever_the_locale(
    environment: dict[str, str], process: Program, here: bytes, locale: dict[str, str]
) -> None:
    del environment["PYTHONWARNINGS"]  # of itself, Python warns of the second
    environment |= locale
    assert process("cat", *(b"./s\xe9/" + name for name in NAMES)) == (0, b"".join(NAMES), "")
    listed = process("find", "-0", b"s\xe9").out
    assert listed.split(b"\0")[:-1] == sorted(b"s\xe9/" + name for name in NAMES)
    arguments = (
        b"--manifest",
        b"m\xff",
        b"--journal",
        b"j\xff",
        b"--include",
        b"caf\xe9",
        b"--include",
        b"d\xff/*",
    )
    assert process("migrate", *arguments, b"s\xe9", b"t\xe9").code == 0
    assert read(b"t\xe9/caf\xe9") == b"caf\xe9"
    assert read(b"t\xe9/d\xff/in\xfe") == b"d\xff/in\xfe"
    assert len(list(Path(os.fsdecode(b"t\xe9")).iterdir())) == 2
    told = [json.loads(line)["identifier"] for line in read(b"m\xff").splitlines()]
    assert told == [decode(b"caf\xe9"), decode(b"d\xff/in\xfe")]
    assert Path(os.fsdecode(b"j\xff")).exists()


def test_every_command_takes_what_the_listings_print(
    process: Program, program: Program, here: bytes, tmp_path: Path
) -> None:
    folder = os.fsdecode(here)
    for line in program("find", "--json", folder).lines:
        location = json.loads(line)["location"]
        name = os.fsencode(location).removeprefix(here + b"/")
        assert program("cat", location).out == name
        assert os.fsencode(json.loads(program("stat", "--json", location).out)["path"]) == here + b"/" + name
        assert program("get", location, os.fsdecode(b"./g\xe9")).code == 0
        assert program("mv", os.fsdecode(b"g\xe9"), os.fsdecode(b"./h\xe9/" + name)).code == 0
        assert read(b"h\xe9/" + name) == name
        assert program("rm", os.fsdecode(b"h\xe9/" + name)).code == 0
        assert program("put", location, os.fsdecode(b"sqlite:///b\xe9.db#x")).code == 0
        assert program("get", os.fsdecode(b"sqlite:///b\xe9.db#x"), "-").out == name
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [b"b\xe9.db", b"h\xe9", b"s\xe9"]  # noqa: PTH208 - bytes
    # Where such a name cannot be, that is said, of that name.
    result = program("put", os.fsdecode(here + b"/caf\xe9"), "memory:")
    assert (result.code, result.err) == (
        2,
        "storage-backend: invalid identifier 'caf\\udce9': it has a lone surrogate, which has no encoding in UTF-8\n",
    )


@pytest.mark.parametrize("spelt", [b"k\xe9", b"k%E9"])
def test_a_path_in_a_parameter_is_bytes_too(program: Program, here: bytes, spelt: bytes) -> None:
    url = f"cached+file://{os.fsdecode(here)}/caf%C3%A9?cache_dir={os.fsdecode(spelt)}"
    assert program("cat", url).out == b"caf\xc3\xa9"
    assert program("cat", url).out == b"caf\xc3\xa9"
    assert json.loads(program("cache", "stats", "--json", os.fsdecode(b"k\xe9")).out)["hits"] == 1
    with open_storage(url.replace("caf%C3%A9", "")) as storage:
        assert isinstance(storage, CachedStorage)
    shutil.rmtree(b"k\xe9")
