"""The "~" at the beginning of a path: the same wherever a path of this machine is given."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from storage_backend import (
    CachedStorage,
    ConfigurationError,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    S3Storage,
    StorageBackend,
    migrate,
    open_storage,
)
from storage_backend.backends.remote.settings import read_settings
from storage_backend.backends.sql.address import parse
from storage_backend.paths import expanded
from storage_backend.secrets import Secret
from storage_backend.wrappers.cached import open_cache

pytestmark = pytest.mark.quick


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory; the current directory is another."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


def test_expanded(home: Path) -> None:
    user = pwd.getpwuid(os.getuid())
    for given, meant in {
        "~": f"{home}",
        "~/a/~": f"{home}/a/~",
        f"~{user.pw_name}/a": f"{user.pw_dir}/a",
        "~nobody-of-that-name/a": "~nobody-of-that-name/a",
        "./~": "./~",
        "/~": "/~",
        "a/~/b": "a/~/b",
        "": "",
    }.items():
        assert expanded(given) == meant
    assert expanded(Path("~/a")) == f"{home}/a"
    assert expanded(None) is None


def used(storage: StorageBackend) -> None:
    with storage:
        storage.write("a", b"1")


def reads_secret() -> None:
    Path("~/x").expanduser().write_text("s3cr3t\n")
    secret = Secret.given("password", "file:~/x")
    assert secret is not None
    assert secret.value() == "s3cr3t"


def migrates(journal: str, manifest: str | None = None) -> None:
    source = MemoryStorage()
    source.write("a", b"1")
    assert migrate(source, MemoryStorage(), journal=journal, manifest=manifest).ok


def downloads() -> None:
    storage = MemoryStorage()
    storage.write("a", b"1")
    storage.download("a", "~/x")


def uploads() -> None:
    Path("~/x").expanduser().write_bytes(b"1")
    for storage in (MemoryStorage(), LocalStorage("there")):
        assert storage.upload("~/x", "a")
        assert storage.read("a") == b"1"


def caches() -> None:
    with CachedStorage(MemoryStorage(), "~/x") as cached:
        cached.write("a", b"1")
    open_cache("~/x").close()


@pytest.mark.parametrize(
    "use",
    [
        lambda: LocalStorage("~/x"),
        lambda: LocalStorage(Path("~/x")),
        lambda: open_storage("~/x", create=True).write("a", b"1"),
        lambda: open_storage(Path("~/x"), create=True).write("a", b"1"),
        lambda: open_storage("sqlite:///~/x", create=True).write("a", b"1"),
        lambda: DatabaseStorage("sqlite:///~/x").write("a", b"1"),
        lambda: used(open_storage("cached+memory:?cache_dir=~/x")),
        lambda: used(CachedStorage(MemoryStorage(), Path("~/x"))),
        caches,
        lambda: migrates("~/x"),
        lambda: migrates("journal", "~/x"),
        reads_secret,
        downloads,
        uploads,
    ],
)
def test_a_path_that_begins_with_it_is_beneath_home(home: Path, use: Callable[[], object]) -> None:
    use()
    assert (home / "x").exists()
    assert not Path("~").exists()


def test_files_that_are_parameters(home: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"the file '{home}/ca.pem' does not exist"):
        S3Storage("b", ca_bundle="~/ca.pem")
    (home / "ca.pem").write_text("")
    S3Storage("b", ca_bundle="~/ca.pem")
    open_storage("s3://b?ca_bundle=~/ca.pem")
    address = parse("postgresql://h/db?sslrootcert=~/ca.pem&passfile=~/p&sslmode=verify-full")
    assert address.parameters["sslrootcert"] == f"{home}/ca.pem"
    assert address.parameters["passfile"] == f"{home}/p"
    (home / "config").write_text("Host h\n  User ana\n")
    assert read_settings({"endpoints": [["h"]], "ssh_config_file": "~/config"}).user == "ana"


def test_urls_with_an_absolute_path_have_none(home: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/~"):
        open_storage("file:///~/x")
    with pytest.raises(FileNotFoundError), open_storage("sqlite:////~/x.db") as storage:
        storage.list()


def test_a_file_of_that_name(home: Path) -> None:
    for given in ("./~", Path("~").absolute()):
        LocalStorage(given).write("x", b"1")
        assert open_storage(given).read("x") == b"1"
    assert Path("~/x").exists()
    assert not list(home.iterdir())
