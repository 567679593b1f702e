"""Locations: what opens, what is refused, and how the refusal reads."""

import importlib.metadata
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backend import (
    CachedStorage,
    ConfigurationError,
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    PrefixedStorage,
    S3Storage,
    StorageBackend,
    StorageError,
    open_storage,
)
from storage_backend.location_parser import has_password, locations_in, redacted, split_location

pytestmark = pytest.mark.quick

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "name", ["plain", "100%", "a%20b", "a#b", "a?b=c", "a:b", "é", "x y", "-n", "host:path", "a//b"]
)
@pytest.mark.parametrize("absolute", [False, True])
def test_paths_are_literal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, absolute: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    Path(name, "x").write_bytes(b"1")
    storage = open_storage(f"{tmp_path}/{name}" if absolute else name)
    assert isinstance(storage, LocalStorage)
    assert storage.read("x") == b"1"


def test_a_pathlike_is_a_path_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memory:").mkdir()
    Path("memory:/x").write_bytes(b"1")
    assert open_storage(Path("memory:")).read("x") == b"1"


def test_file_urls_are_percent_decoded(tmp_path: Path) -> None:
    place = tmp_path / "a b#c%"
    place.mkdir()
    (place / "x").write_bytes(b"1")
    for url in [f"file://{tmp_path}/a%20b%23c%25", f"FILE://localhost{tmp_path}/a%20b%23c%25"]:
        assert open_storage(url).read("x") == b"1"


def test_a_location_opens_the_same_place_again(tmp_path: Path) -> None:
    place = tmp_path / "a b#c%é?"
    storage = PrefixedStorage(PrefixedStorage(open_storage(place, create=True), "p q"), "r#s%")
    storage.write("x", b"1")
    again = open_storage(storage.location)
    assert isinstance(again, PrefixedStorage)
    assert again.prefix == "p q/r#s%"
    assert again.read("x") == b"1"


def test_names_that_are_not_utf8_survive_a_location(tmp_path: Path) -> None:
    place = tmp_path / "\udcff"
    place.mkdir()
    storage = open_storage(str(place))
    storage.write("x", b"1")
    assert open_storage(storage.location).read("x") == b"1"


def test_a_missing_directory_is_created_only_when_asked(tmp_path: Path) -> None:
    for location in [str(tmp_path / "gone"), f"file://{tmp_path}/gone", f"file://{tmp_path}/gone#p"]:
        with pytest.raises(FileNotFoundError, match="gone"):
            open_storage(location)
        assert not (tmp_path / "gone").exists()
    open_storage(f"{tmp_path}/gone/deep", create=True).write("x", b"1")
    assert (tmp_path / "gone/deep/x").read_bytes() == b"1"


def test_a_missing_database_is_created_only_when_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(FileNotFoundError), open_storage(url) as storage:
        storage.list()
    assert not (tmp_path / "x.db").exists()
    with open_storage(url, create=True) as storage:
        storage.write("a", b"1")
    with open_storage(url) as storage:
        assert storage.read("a") == b"1"
    with open_storage(f"{url}#p", create=True) as storage:
        storage.write("a", b"2")
    with open_storage(storage.location) as storage:
        assert storage.list() == ["a"]
    with open_storage(url) as storage:
        assert storage.list() == ["a", "p/a"]


def test_a_relative_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_storage("sqlite:///x.db", create=True) as storage:
        storage.write("a", b"1")
        assert storage.location == f"sqlite:///{tmp_path}/x.db"
    assert (tmp_path / "x.db").is_file()


def test_memory_is_a_store_of_its_own() -> None:
    one, other = open_storage("memory:"), open_storage("memory:")
    assert isinstance(one, MemoryStorage)
    one.write("a", b"1")
    assert other.list() == []
    assert isinstance(open_storage("memory:#p"), PrefixedStorage)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        (
            "ftp://host/x",
            r"unknown scheme 'ftp'.*Known: .*file, memory, postgresql, s3, sqlite, ssh, \"cached\+\" before any.*plain paths",
        ),
        ("postgres://host/db", "did you mean 'postgresql'"),
        ("sqllite:///x.db", "did you mean 'sqlite'"),
        ("cache+s3://b", "did you mean 'cached\\+s3'"),
        ("cached+shh://h/x", "unknown scheme 'shh'.*did you mean 'ssh'.*cached"),
        ("c:\\data", "Windows"),
        ("C:/data", "Windows"),
        ("sqlite:x.db", "sqlite:///archive.db"),
        ("file:/data", "file:///data/papers"),
        ("file://data/x", "no absolute path"),
        ("file://", "no absolute path"),
        ("file:///x?durable=1", "unknown parameter 'durable'.*file takes none"),
        ("memory:x", "may follow"),
        ("memory:#", "prefix"),
        ("memory:#../x", "outside base directory"),
        ("sqlite://x.db", "three slashes"),
        ("sqlite:///", "MemoryStorage"),
        ("sqlite:///x.db?mode=ro", "unknown parameter 'mode'"),
        ("postgresql://host/db?sslmod=require", "unknown parameter 'sslmod'.*application_name.*sslmode"),
        ("postgresql://host/db?password=x", "PGPASSWORD"),
        ("postgresql://host", "no database name"),
        ("postgresql://host:abc/db", "port"),
    ],
)
def test_refuses_clearly(location: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        open_storage(location)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        f"postgresql://u:{SECRET}@h:99999999/db",
        f"postgresql://u:{SECRET}@h/",
        f"postgresql://u:{SECRET}@h/db?nonsense=1",
        f"postgres://u:{SECRET}@h/db",
        f"postgresql://u:a#{SECRET}@h/db",
        f"postgresql://u:1#{SECRET}@h/db",
        f"postgresql://u:a/{SECRET}@h/db",
        f"postgresql://u:a?{SECRET}@h/db",
        f"postgresql://u:a@{SECRET}@h/",
        f"postgresql:u:{SECRET}@h/",
    ],
)
def test_no_error_has_the_password(location: str) -> None:
    with pytest.raises(Exception) as caught:
        open_storage(location).list()
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in repr(error)
        assert SECRET not in repr(vars(error))
        error = error.__cause__ or error.__context__


def test_redacted() -> None:
    assert redacted(f"postgresql://u:{SECRET}@h/db") == "postgresql://u:***@h/db"
    assert redacted(f"postgresql://u:a@{SECRET}/@h/db") == "postgresql://u:***@h/db"
    for plain in ["postgresql://u@h:5432/db", "/a:b@c", "/a/x://u:p@h", "sqlite:///x.db", "x://a:1/b"]:
        assert redacted(plain) == plain
        assert not has_password(plain)
    assert has_password(f"postgresql://:{SECRET}@h/db")


@pytest.mark.parametrize(
    ("location", "base", "identifier"),
    [
        ("/a/b", "/a", "b"),
        ("/b", "/", "b"),
        ("b", ".", "b"),
        ("a%20/b%20#c", "a%20", "b%20#c"),
        ("../b", "..", "b"),
        ("a:b", ".", "a:b"),
        ("file:///a/b%20c", "file:///a/", "b c"),
        ("file:///b", "file:///", "b"),
        ("file:///a#b/c", "file:///a", "b/c"),
        ("sqlite:///x.db#a/b%23", "sqlite:///x.db", "a/b#"),
        ("sqlite:////x/y.db#%FF", "sqlite:////x/y.db", "\udcff"),
        ("postgresql://h/db?host=/s#a", "postgresql://h/db?host=/s", "a"),
        ("memory:#a", "memory:", "a"),
    ],
)
def test_split_location(location: str, base: str, identifier: str) -> None:
    assert split_location(location) == (base, identifier)


@pytest.mark.parametrize(
    "location",
    ["/", "a/", ".", "..", "a/..", "file:///", "file:///a/", "sqlite:///x.db", "memory:", "memory:#", ""],
)
def test_what_names_no_object_is_refused(location: str) -> None:
    with pytest.raises(ConfigurationError):
        split_location(location)


@given(st.text())
def test_every_text_opens_or_is_refused(text: str) -> None:
    for call in (open_storage, split_location):
        with suppress(StorageError):
            call(text)


def test_an_entry_point_adds_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    class Custom(MemoryStorage):
        def __init__(self, url: str, *, create: bool) -> None:
            super().__init__()
            self.given = (url, create)

    class Entry:
        name = "custom"

        def load(self) -> type[StorageBackend]:
            return Custom

    def entry_points(group: str) -> list[Any]:
        return [Entry()] if group == "storage_backend.backends" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    storage = open_storage("custom://a/b?c=d#p", create=True)
    assert isinstance(storage, PrefixedStorage)
    assert isinstance(storage.backend, Custom)
    assert storage.backend.given == ("custom://a/b?c=d", True)
    with pytest.raises(ConfigurationError, match=r"did you mean 'custom'.*Known: custom, file"):
        open_storage("custon://x")


def test_bucket_by_its_url() -> None:
    storage = open_storage(
        "s3://bucket/some/pre%20fix/?region=eu-west-1&endpoint_url=http://127.0.0.1:9&anonymous=true"
    )
    assert isinstance(storage, S3Storage)
    assert (storage.bucket, storage.prefix) == ("bucket", "some/pre fix")
    assert storage.location == (
        "s3://bucket/some/pre%20fix?region=eu-west-1&endpoint_url=http://127.0.0.1:9&anonymous=true"
    )
    again = open_storage(storage.location)
    assert again.location == storage.location
    assert open_storage("s3://bucket").location == "s3://bucket"
    arn = "arn:aws:s3:us-west-2:123456789012:accesspoint/mine"
    assert open_storage(S3Storage(arn, "p").location).get_path("x") == f"s3://{arn}/p/x"


def test_object_in_a_bucket_is_its_whole_key() -> None:
    assert split_location("s3://bucket/a/b%20c.txt?region=x") == ("s3://bucket?region=x", "a/b c.txt")
    for location in ("s3://bucket", "s3://bucket/", "s3://bucket/a/"):
        with pytest.raises(ConfigurationError, match="names a directory"):
            split_location(location)


def test_a_cache_before_any_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    location = (
        f"cached+sqlite:///{tmp_path}/a.db?cache_dir={tmp_path}/c&max_mb=1.5&ttl=60&stale_if_error=5#p%20q"
    )
    with open_storage(location, create=True) as storage:
        assert isinstance(storage, PrefixedStorage)
        cached = storage.backend
        assert isinstance(cached, CachedStorage)
        assert isinstance(cached.backend, DatabaseStorage)
        assert (cached.max_cache_size_mb, cached.ttl_seconds, cached.stale_if_error) == (1.5, 60, 5)
        assert cached.cache_dir == tmp_path / "c"
        storage.write("x", b"1")
        assert storage.prefix == "p q"
    with open_storage(f"CACHED+file://{tmp_path}") as cached:
        assert isinstance(cached, CachedStorage)
        assert cached.cache_dir == tmp_path / "xdg" / "storage-backend"
        assert cached.location == LocalStorage(tmp_path).location


@pytest.mark.parametrize(
    ("location", "base", "identifier"),
    [
        (
            "cached+s3://b/p/x?region=eu&cache_dir=/tmp/a%20b&ttl=3",
            "cached+s3://b?region=eu&cache_dir=%2Ftmp%2Fa%20b&ttl=3",
            "p/x",
        ),
        ("cached+file:///d/x?cache_dir=/c/d", "cached+file:///d/?cache_dir=%2Fc%2Fd", "x"),
        ("cached+sqlite:///a.db?cache_dir=/c#n", "cached+sqlite:///a.db?cache_dir=%2Fc", "n"),
        ("cached+ssh://h/~/p/x", "cached+ssh://h/~/p", "x"),
    ],
)
def test_split_location_keeps_the_cache(location: str, base: str, identifier: str) -> None:
    assert split_location(location) == (base, identifier)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("cached+/tmp/x", "must follow"),
        ("cached+cached+file:///tmp", "must follow"),
        ("cached+file:///tmp?cache_dir=/c&max_mb=much", "max_mb: 'much' is not a number"),
        ("cached+file:///tmp?cache_dir=/c&max_mb=-1", "max_mb: -1.0 is negative or not finite"),
        ("cached+file:///tmp?cache_dir=/c&cache_engine=x", "cache_engine: 'x' is not"),
        (
            "cached+file:///tmp?cachedir=/c",
            "unknown parameter 'cachedir' (did you mean 'cache_dir'?); file takes none",
        ),
        ("cached+s3://b?max-mb=3", "'max-mb' (did you mean 'max_mb'?); s3 takes accelerate, acl,"),
        (
            "cached+sqlite:///x.db?engine=diskcache",
            "unknown parameter 'engine' (did you mean 'cache_engine'?)",
        ),
        (
            "cached+ssh://h/x?keyfile=k",
            "unknown parameter 'keyfile' (did you mean 'key_filename'?); ssh takes agent,",
        ),
        (
            "cached+postgresql://h/db?tll=3",
            "unknown parameter 'tll' (did you mean 'ttl'?); postgresql takes app",
        ),
        ("cached+memory:?x=1", "the cache takes cache_dir, cache_engine, max_mb, stale_if_error, ttl"),
        ("s3://b?max_mb=3", 'max_mb is a parameter of a cache: write "cached+" before the URL'),
        ("s3://b?password=x", "unknown parameter 'password'; s3 takes"),
        ("s3://b?regoin=3", "unknown parameter 'regoin' (did you mean 'region'?)"),
    ],
)
def test_a_wrong_cache_is_refused(location: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(says)):
        open_storage(location)


def test_redacted_through_a_cache() -> None:
    assert (
        redacted("cached+postgresql://u:p/w@h/d?cache_dir=/c") == "cached+postgresql://u:***@h/d?cache_dir=/c"
    )
    assert redacted("cached+ssh://u:pw@h/a@b:c@d") == "cached+ssh://u:***@h/a@b:c@d"


@pytest.mark.parametrize(
    ("place", "located", "base"),
    [
        ("papers", "papers/d/a b#?%", "papers/d"),
        ("./sqlite:", "./sqlite:/d/a b#?%", "./sqlite:/d"),
        ("/data/", "/data/d/a b#?%", "/data/d"),
        ("/", "/d/a b#?%", "/d"),
        ("file:///data%20set", "file:///data%20set/d/a%20b%23%3F%25", "file:///data%20set/d/"),
        ("file:///data#x", "file:///data#x/d/a%20b%23%3F%25", "file:///data"),
        ("sqlite:///x.db", "sqlite:///x.db#d/a%20b%23%3F%25", "sqlite:///x.db"),
        ("sqlite:///x.db#p%20q/", "sqlite:///x.db#p%20q/d/a%20b%23%3F%25", "sqlite:///x.db"),
        ("s3://bucket?region=x", "s3://bucket/d/a%20b%23%3F%25?region=x", "s3://bucket?region=x"),
        ("s3://bucket/p/?region=x", "s3://bucket/p/d/a%20b%23%3F%25?region=x", "s3://bucket?region=x"),
        ("ssh://host", "ssh://host/~/d/a%20b%23%3F%25", "ssh://host/~/d"),
        ("ssh://host/?agent=true", "ssh://host/d/a%20b%23%3F%25?agent=true", "ssh://host/d?agent=true"),
        ("ssh://host/~/p", "ssh://host/~/p/d/a%20b%23%3F%25", "ssh://host/~/p/d"),
        (
            "cached+s3://bucket/p?cache_dir=/c&region=x",
            "cached+s3://bucket/p/d/a%20b%23%3F%25?cache_dir=/c&region=x",
            "cached+s3://bucket?region=x&cache_dir=%2Fc",
        ),
    ],
)
def test_the_location_of_an_object_is_split_again(place: str, located: str, base: str) -> None:
    assert locations_in(place)("d/a b#?%") == located
    assert split_location(located)[0] == base
    assert ("/" + split_location(located)[1]).endswith("/a b#?%")
