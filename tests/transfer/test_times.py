"""Whatever time an object has, and whatever of it the target keeps: of two runs, the second has nothing to copy."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage_backend import (
    DatabaseStorage,
    LocalStorage,
    MemoryStorage,
    ObjectInfo,
    RemoteStorage,
    S3Storage,
    StorageBackend,
    migrate,
    sync,
)
from storage_backend.backends.remote import SSHConfig
from storage_backend.wrappers.base import Wrapper
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from tests.seven import Seven
from tests.transfer.samples import contents

FIRST, LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
ODD = [
    FIRST,
    LAST,
    datetime(1960, 2, 3, 4, 5, 6, 789000, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 500000, tzinfo=UTC),
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2038, 1, 19, 3, 14, 7, 999999, tzinfo=UTC),
    datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC),
    datetime(2108, 1, 1, tzinfo=UTC),
    datetime(2446, 5, 10, 22, 38, 56, tzinfo=UTC),
]


class Clamping(Wrapper):
    """As a file system that keeps whole seconds from 1980 to 2030, and the nearest of them for any other time."""

    @staticmethod
    def held(moment: datetime) -> datetime:
        nearest = min(max(moment, datetime(1980, 1, 1, tzinfo=UTC)), datetime(2050, 1, 1, tzinfo=UTC))
        return nearest.replace(microsecond=0)

    def _shown(self, info: ObjectInfo) -> ObjectInfo:
        assert info.modified is not None
        return ObjectInfo(info.identifier, info.size, self.held(info.modified))

    def stat(self, identifier: str) -> ObjectInfo:
        return self._shown(super().stat(identifier))

    def stat_many(self, identifiers: Iterable[str]) -> Iterator[ObjectInfo]:
        return map(self._shown, super().stat_many(identifiers))

    def scan(self, prefix: str = "", **_: object) -> Iterator[ObjectInfo]:
        return map(self._shown, super().scan(prefix))


class Places:
    """Empty backends of every kind, one after the other."""

    def __init__(self, stack: ExitStack, request: pytest.FixtureRequest, folder: Path) -> None:
        self.count = 0
        server = stack.enter_context(S3Server())
        place = request.getfixturevalue("openssh_place")

        def s3(name: str) -> StorageBackend:
            server.create_bucket(name)
            storage = S3Storage(
                name,
                endpoint_url=server.url,
                region="us-east-1",
                access_key=ACCESS_KEY,
                secret_key=SECRET_KEY,
            )
            return stack.enter_context(storage)

        def ssh(name: str) -> StorageBackend:
            storage = RemoteStorage(cast(SSHConfig, place.config()), f"{place.base}/{name}")
            return stack.enter_context(storage)

        def sqlite(name: str) -> StorageBackend:
            return stack.enter_context(DatabaseStorage(f"sqlite:///{folder}/{name}.db"))

        def postgresql(_: str) -> StorageBackend:
            databases = request.getfixturevalue("postgresql")
            url = databases.url(stack.enter_context(databases.database()))
            return stack.enter_context(DatabaseStorage(url))

        self.kinds: dict[str, Callable[[str], StorageBackend]] = {
            "memory": lambda _: MemoryStorage(),
            "clamping": lambda _: Clamping(MemoryStorage()),
            "seven": lambda _: Seven(),
            "local": lambda name: LocalStorage(folder / name),
            "sqlite": sqlite,
            "postgresql": postgresql,
            "s3": s3,
            "ssh": ssh,
        }

    def new(self, kind: str) -> StorageBackend:
        self.count += 1
        return self.kinds[kind](f"place-{self.count}")


KINDS = ["memory", "clamping", "seven", "local", "sqlite", "s3", "ssh"]
times = st.one_of(st.sampled_from(ODD), st.datetimes(timezones=st.just(UTC)))


@pytest.mark.parametrize("kind", [*KINDS, pytest.param("postgresql", marks=pytest.mark.soak)])
def test_of_two_runs_the_second_copies_nothing(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, soak: bool
) -> None:
    with ExitStack() as stack:
        places = Places(stack, request, tmp_path)

        @settings(max_examples=60 if soak else 3, deadline=None, suppress_health_check=list(HealthCheck))
        @given(data=st.data())
        def second_copies_nothing(data: st.DataObject) -> None:
            source, target = places.new(data.draw(st.sampled_from([*KINDS, kind]))), places.new(kind)
            objects = data.draw(
                st.dictionaries(
                    st.sampled_from("abcdefghij"), st.tuples(st.binary(max_size=3), times), min_size=8
                )
            )
            for name, (content, modified) in objects.items():
                info = ObjectInfo(name, len(content), modified)
                source.write_stream(name, io.BytesIO(content), info=info)
            first = sync(source, target)
            assert first.ok
            assert contents(target) == {name: content for name, (content, _) in objects.items()}
            assert sync(source, target).copied == 0
            other, journal = places.new(kind), tmp_path / f"journal-{places.count}"
            assert migrate(source, other, journal=journal).ok
            again = migrate(source, other, journal=journal, delete_source=True, flush=False)
            assert (again.copied, again.failed) == (0, {})
            assert again.source_deleted == len(objects)

        second_copies_nothing()


def test_a_change_is_seen_whatever_the_time() -> None:
    for modified in ODD:
        source, target = MemoryStorage(), Clamping(MemoryStorage())
        for content, moment in (
            (b"old", modified),
            (b"new", modified + timedelta(0, -60 if modified.year > 2000 else 60)),
        ):
            source.write_stream("a", io.BytesIO(content), info=ObjectInfo("a", 3, moment))
            assert sync(source, target).copied == 1
        assert target.read("a") == b"new"
