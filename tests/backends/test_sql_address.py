"""Which database a URL means, and what is said of it aloud."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import pytest

from storage_backend import ConfigurationError, DatabaseStorage
from storage_backend.backends.sql.address import parse

pytestmark = pytest.mark.quick

SECRET = "hunter2/#?@"
QUOTED = "hunter2%2F%23%3F%40"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////data/archive.db", "/data/archive.db"),
        ("sqlite:////data/a%20b%25%23%3F.db", "/data/a b%#?.db"),
        ("sqlite:////data/a b.db", "/data/a b.db"),
        ("sqlite:////data/é.db", "/data/é.db"),
        ("sqlite:////data/%FF.db", "/data/\udcff.db"),
        ("sqlite:////data/../x/./y.db", "/x/y.db"),
    ],
)
def test_sqlite_path(url: str, path: str) -> None:
    address = parse(url)
    assert (address.dialect, address.path) == ("sqlite", path)
    assert parse(address.location) == address


def test_relative_path_is_that_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = DatabaseStorage("sqlite:///archive.db")
    assert list(tmp_path.iterdir()) == []  # the constructor does no I/O
    monkeypatch.chdir("/")
    storage.write("a", b"1")
    storage.close()
    assert (tmp_path / "archive.db").exists()
    assert storage.location == f"sqlite:///{tmp_path}/archive.db"


@pytest.mark.parametrize(
    ("url", "parameters", "location"),
    [
        ("postgresql:///db", {"dbname": "db"}, None),
        ("postgresql://me@host/db", {"user": "me", "host": "host", "dbname": "db"}, None),
        (
            "postgresql://me@host:5433/a%2Fb",
            {"user": "me", "host": "host", "port": "5433", "dbname": "a/b"},
            None,
        ),
        ("postgresql://[::1]:5433/db", {"host": "::1", "port": "5433", "dbname": "db"}, None),
        ("postgresql://a:1,b/db", {"host": "a,b", "port": "1,", "dbname": "db"}, None),
        ("postgresql://%2Frun%2Fpg/db", {"host": "/run/pg", "dbname": "db"}, None),
        (
            "postgresql://me@/db?host=/run/pg&sslmode=require",
            {"user": "me", "host": "/run/pg", "sslmode": "require", "dbname": "db"},
            None,
        ),
        (
            f"postgresql://me:{QUOTED}@host/db",
            {"user": "me", "host": "host", "dbname": "db"},
            "postgresql://me@host/db",
        ),
    ],
)
def test_postgresql_parameters(url: str, parameters: dict[str, str], location: str | None) -> None:
    address = parse(url)
    assert dict(address.parameters) == parameters
    assert address.location == (location or url)
    again = parse(address.location)
    assert (again.parameters, again.location) == (address.parameters, address.location)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "archive.db",
        "/archive.db",
        "sqlite:",
        "mysql://u:hunter2@h/db",
        "postgres://u:hunter2@h/db",
        "postgresql+psycopg://u:hunter2@h/db",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://archive.db",
        "sqlite:///archive.db?mode=ro",
        "sqlite:///archive.db#a",
        "sqlite:///a%00b",
        "postgresql://u:hunter2@h",
        "postgresql://u:hunter2@h/",
        "postgresql://u:hunter2@h:port/db",
        "postgresql://u:hunter2#x@h/db",
        "postgresql://u:hunter2/x@h/db",
        "postgresql://u:hunter2?x@h/db",
        "postgresql://u@h/db?password=hunter2",
        "postgresql://u@h/db?sslpassword=hunter2",
        "postgresql://u@h/db?sslmod=require",
        "postgresql://u@h/db?=",
        "postgresql://[::1/db",
    ],
)
def test_wrong_url_is_one_line_that_names_the_parameter(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url: ") as caught:
        DatabaseStorage(url)
    assert caught.value.parameter == "url"
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        ConfigurationError, match=r"'mysql'; known: sqlite:///FILE, postgresql://USER@HOST/NAME"
    ):
        DatabaseStorage("mysql://h/db")
    with pytest.raises(ConfigurationError, match=r"'sslmod'; known: .*sslmode"):
        DatabaseStorage("postgresql://h/db?sslmod=require")
    with pytest.raises(ConfigurationError, match="MemoryStorage"):
        DatabaseStorage("sqlite://")


@pytest.mark.parametrize("name", ["timeout_seconds", "connections", "stale_seconds"])
def test_wrong_number_is_refused(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(ConfigurationError) as caught:
            DatabaseStorage("sqlite:///x.db", **{name: value})  # type: ignore[arg-type] # one name at a time
        assert caught.value.parameter == name


def test_password_for_a_file_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="password"):
        DatabaseStorage("sqlite:///x.db", password="x")
    with pytest.raises(ConfigurationError, match="password"):
        DatabaseStorage("postgresql://u:x@h/db", password="x")


def test_literal_password_is_nowhere() -> None:
    for storage in (
        DatabaseStorage(f"postgresql://me:{QUOTED}@host/db"),
        DatabaseStorage("postgresql://me@host/db", password=SECRET),
    ):
        shown = [repr(storage), str(storage), storage.location, storage.get_path("a"), repr(storage._address)]
        assert storage.location == "postgresql://me@host/db"
        for refused in (pickle.dumps, copy.copy):
            with pytest.raises(
                ConfigurationError, match=r"PGPASSWORD, \.pgpass.*env:NAME.*file:PATH"
            ) as caught:
                refused(storage)
            shown.append(str(caught.value))
        assert not any("hunter2" in text for text in shown), shown


def test_reference_is_pickled_and_looked_up_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SB_SECRET", SECRET)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    for reference in ("env:SB_SECRET", f"file:{tmp_path}/secret"):
        storage = DatabaseStorage("postgresql://me@host/db", password=reference)
        pickled = pickle.dumps(storage)
        assert b"hunter2" not in pickled
        assert pickle.loads(pickled)._address.password.value() == SECRET
    del os.environ["SB_SECRET"]
    (tmp_path / "secret").unlink()
    for reference in ("env:SB_SECRET", f"file:{tmp_path}/secret"):
        with pytest.raises(ConfigurationError, match=reference.partition(":")[2]):
            DatabaseStorage("postgresql://me@host/db", password=reference).list()


def test_reference_in_a_url_is_a_literal_password() -> None:
    with pytest.raises(ConfigurationError, match="pickle"):
        pickle.dumps(DatabaseStorage("postgresql://me:env%3AX@host/db"))


def test_path_of_an_object_is_percent_encoded() -> None:
    assert DatabaseStorage("sqlite:////d/a%20b.db").get_path("x y/é#?%") == (
        "sqlite:////d/a%20b.db#x%20y/%C3%A9%23%3F%25"
    )
    assert DatabaseStorage("postgresql://u:p@h/db").get_path("a/b") == "postgresql://u@h/db#a/b"
