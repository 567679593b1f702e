"""Tar streams: what we write others read, and of what a server sends only what was asked for is taken."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage_backend import IntegrityError
from storage_backend.backends.remote.tar_format import BLOCK, ArchiveTooLargeError, archive, length, members
from storage_backend.testing.subject import same

LIMIT = 1 << 20
NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and b"/" not in name)
PATHS = st.lists(NAMES.filter(lambda name: name not in {b".", b".."}), min_size=1, max_size=4).map(b"/".join)
CONTENTS = st.binary(max_size=2 * BLOCK + 1)
LONG = st.binary(min_size=1, max_size=1200).map(lambda name: name.replace(b"\0", b"x").strip(b"/") or b"x")


def pieces(data: bytes, length: int = 1 << 16) -> Callable[[int], bytes]:
    stream = io.BytesIO(data)
    return lambda size: stream.read(min(size, length))


def read_all(
    data: bytes, asked: list[bytes], limit: int = LIMIT, length: int = 1 << 16
) -> list[tuple[bytes, bytes]]:
    found = members(pieces(data, length), [b"./" + name for name in asked], limit)
    return [(asked[at], content) for at, content in found]


def packed(files: list[tuple[bytes, bytes]], form: int = tarfile.GNU_FORMAT, **fields: object) -> bytes:
    """What a server's tar says, written by Python's own tarfile."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def changed(data: bytes, position: int, field: bytes) -> bytes:
    """*data* with *field* at *position* of its first header, and the checksum of that."""
    block = bytearray(data[:BLOCK])
    block[position : position + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[BLOCK:]


class TestWriting:
    @given(st.lists(st.tuples(LONG, CONTENTS, st.integers(0, (1 << 32) - 1)), max_size=20))
    def test_python_reads_what_is_written(self, files: list[tuple[bytes, bytes, int]]) -> None:
        data = b"".join(archive(files))
        assert length((path, len(content)) for path, content, _ in files) == len(data)
        with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
            found = [
                (os.fsencode(member.name), _content(tar, member), member.mtime, member.mode, member.isreg())
                for member in tar
            ]
        assert found == [(*file, 0o666, True) for file in files]

    def test_pieces_are_worth_a_send(self) -> None:
        sent = list(archive((b"%d" % at, bytes(4096), 0) for at in range(500)))
        assert all(len(piece) >= 64 << 10 for piece in sent[:-1])
        assert len(sent) > 2


class TestReading:
    @given(st.dictionaries(PATHS, CONTENTS, max_size=10), st.integers(1, 2000))
    def test_what_gnu_tar_writes_is_read(self, files: dict[bytes, bytes], length: int) -> None:
        data = packed([(b"./" + name, content) for name, content in files.items()])
        found = read_all(data, list(files), length=length)
        assert same(found, list(files.items()))

    @pytest.mark.parametrize("name", [b"a" * 90 + b"/" + b"b" * 90, b"short", b"x" * 98])
    def test_what_ustar_splits_is_joined(self, name: bytes) -> None:
        assert read_all(packed([(b"./" + name, b"1")], tarfile.USTAR_FORMAT), [name]) == [(name, b"1")]

    @given(st.lists(CONTENTS, max_size=10))
    def test_what_we_write_is_read(self, contents: list[bytes]) -> None:
        data = b"".join(archive((b"./%d" % at, content, 0) for at, content in enumerate(contents)))
        names = [b"%d" % at for at in range(len(contents))]
        assert same(read_all(data, names), list(zip(names, contents, strict=True)))

    def test_missing_members_are_passed_over(self) -> None:
        data = packed([(b"./b", b"2"), (b"./d", b"4")])
        assert read_all(data, [b"a", b"b", b"c", b"d", b"e"]) == [(b"b", b"2"), (b"d", b"4")]

    @pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
    def test_what_is_no_regular_file_is_left_out(self, kind: bytes) -> None:
        data = packed([(b"./a", b"")], type=kind)[:BLOCK] + packed([(b"./b", b"2")])
        assert read_all(data, [b"a", b"b"]) == [(b"b", b"2")]

    def test_size_in_base_256_is_read(self) -> None:
        data = changed(packed([(b"./a", b"12345")]), 124, b"\x80" + (5).to_bytes(11, "big"))
        assert read_all(data, [b"a"]) == [(b"a", b"12345")]


class TestRefusing:
    @pytest.mark.parametrize(
        "name",
        [
            b"/etc/passwd",
            b"../a",
            b"./../a",
            b"./a/../b",
            b"a",
            b"./b",
            b"./a/",
            b".//a",
            b"././a",
            b"./a\n",
            b"./A",
        ],
    )
    def test_name_that_was_not_asked_for(self, name: bytes) -> None:
        with pytest.raises(IntegrityError, match="not requested"):
            read_all(packed([(name, b"x")]), [b"a"])

    def test_member_twice(self) -> None:
        with pytest.raises(IntegrityError, match="not requested, is repeated"):
            read_all(packed([(b"./a", b"1"), (b"./a", b"2")]), [b"a", b"b"])

    def test_members_out_of_order(self) -> None:
        with pytest.raises(IntegrityError, match="out of order"):
            read_all(packed([(b"./b", b"1"), (b"./a", b"2")]), [b"a", b"b"])

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
    def test_links(self, kind: bytes) -> None:
        with pytest.raises(IntegrityError, match="type"):
            read_all(packed([(b"./a", b"")], type=kind, linkname="/etc/passwd"), [b"a"])

    @pytest.mark.parametrize("kind", [b"S", b"x", b"g", b"K", b"V", b"M", b"D", b"7", b"X", b"z", b"\xff"])
    def test_records_that_change_others(self, kind: bytes) -> None:
        with pytest.raises(IntegrityError, match="type"):
            read_all(changed(packed([(b"./a", b"")]), 156, kind), [b"a"])

    @pytest.mark.parametrize("record", [{"path": "./b"}, {"size": "1"}, {"GNU.sparse.realsize": "1"}])
    def test_pax_records(self, record: dict[str, str]) -> None:
        data = packed([(b"./a", b"1")], tarfile.PAX_FORMAT, pax_headers=record)
        with pytest.raises(IntegrityError, match="type"):
            read_all(data, [b"a", b"b"])

    @given(st.integers(0, BLOCK - 1), st.integers(1, 255))
    def test_header_with_a_changed_byte(self, position: int, change: int) -> None:
        data = bytearray(packed([(b"./a", b"1")]))
        data[position] ^= change
        if not 148 <= position < 156:
            with pytest.raises(IntegrityError):
                read_all(bytes(data), [b"a"])

    @pytest.mark.parametrize(
        "field",
        [
            b"\xff" * 12,
            b"-0000000001\0",
            b"+0000000001\0",
            b"0x000000001\0",
            b"0_000000001\0",
            b"00000000008\0",
            bytes(12),
        ],
    )
    def test_bad_sizes(self, field: bytes) -> None:
        with pytest.raises(IntegrityError, match="size"):
            read_all(changed(packed([(b"./a", b"1")]), 124, field), [b"a"])

    @pytest.mark.parametrize("field", [b"\x80" + b"\xff" * 11, b"77777777777\0"])
    def test_huge_size_is_refused_before_it_is_read(self, field: bytes) -> None:
        with pytest.raises(ArchiveTooLargeError):
            read_all(changed(packed([(b"./a", b"1")]), 124, field), [b"a"])

    def test_content_above_the_limit(self) -> None:
        assert read_all(packed([(b"./a", b"123")]), [b"a"], limit=3)
        with pytest.raises(ArchiveTooLargeError, match="4 bytes exceeds"):
            read_all(packed([(b"./a", b"1234")]), [b"a"], limit=3)
        with pytest.raises(ArchiveTooLargeError):
            read_all(packed([(b"./a", b"12"), (b"./b", b"34")]), [b"a", b"b"], limit=3)

    def test_long_name_after_long_name(self) -> None:
        long = packed([(b"./" + b"a" * 200, b"")])[: 2 * BLOCK]
        with pytest.raises(IntegrityError, match="long name"):
            read_all(long * 1000, [b"a" * 200])

    def test_endless_long_name(self) -> None:
        with pytest.raises(IntegrityError, match="long name"):
            read_all(packed([(b"./" + b"a" * 10_000, b"")]), [b"a" * 10_000])

    def test_long_name_before_the_end(self) -> None:
        with pytest.raises(IntegrityError, match="long name"):
            read_all(packed([(b"./" + b"a" * 200, b"")])[: 2 * BLOCK] + bytes(2 * BLOCK), [b"a" * 200])

    def test_endless_directories(self) -> None:
        with pytest.raises(IntegrityError, match="not requested"):
            read_all(packed([(b"./a", b"")], type=tarfile.DIRTYPE)[:BLOCK] * 1000, [b"a"])

    def test_directory_with_content(self) -> None:
        directory = changed(packed([(b"./a", b"1")]), 156, tarfile.DIRTYPE)
        with pytest.raises(IntegrityError, match="with content"):
            read_all(directory, [b"a"])

    @pytest.mark.parametrize("tail", [b"x", packed([(b"./b", b"1")]), bytes(1 << 20)])
    def test_something_after_the_end(self, tail: bytes) -> None:
        with pytest.raises(IntegrityError, match="after its end"):
            read_all(packed([(b"./a", b"1")]) + tail, [b"a", b"b"])

    @given(st.integers(0, 4 * BLOCK - 1))
    def test_early_end(self, length: int) -> None:
        data = packed([(b"./a", b"1" * (BLOCK + 1))])
        with pytest.raises(EOFError):
            read_all(data[:length], [b"a"])

    @given(st.binary(max_size=3 * BLOCK))
    def test_noise_is_refused_or_empty(self, noise: bytes) -> None:
        try:
            found = read_all(noise, [b"a"])
        except (IntegrityError, EOFError):
            return
        assert found == []


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None
    return opened.read()
