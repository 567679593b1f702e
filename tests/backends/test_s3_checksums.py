from __future__ import annotations

import base64
import hashlib
import mmap
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from storage_backend import ConfigurationError
from storage_backend.backends.s3.checksums import (
    base64_of,
    crc32_combined,
    known,
    multipart_etag,
    running_digest,
)

pytestmark = pytest.mark.quick

VECTORS = {  # of "123456789": "Catalogue of parametrised CRC algorithms", and coreutils for the hashes
    "crc32": "cbf43926",
    "crc32c": "e3069283",
    "crc64nvme": "ae8b14860a799888",
    "md5": "25f9e794323b453885f5181f1b624d0b",
    "sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
    "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
}
ALWAYS = ["crc32", "md5", "sha1", "sha256"]
CRCS = st.integers(0, 0xFFFFFFFF)


class TestRunning:
    @pytest.mark.parametrize("algorithm", VECTORS)
    def test_gives_the_published_digest(self, algorithm: str) -> None:
        if not known(algorithm):
            pytest.skip(f"{algorithm} needs awscrt")
        running = running_digest(algorithm)
        for piece in (b"1234", b"", b"56789"):
            running.update(piece)
        assert running.digest().hex() == VECTORS[algorithm]
        assert base64.b64decode(base64_of(running.digest())).hex() == VECTORS[algorithm]

    @pytest.mark.parametrize("algorithm", ALWAYS)
    @given(pieces=st.lists(st.binary(max_size=100)))
    def test_digest_of_the_pieces_is_that_of_the_whole(self, algorithm: str, pieces: list[bytes]) -> None:
        running = running_digest(algorithm)
        for piece in pieces:
            running.update(piece)
        whole = b"".join(pieces)
        if algorithm == "crc32":
            assert running.digest().hex() == f"{zlib.crc32(whole):08x}"
        else:
            assert running.digest() == hashlib.new(algorithm, whole).digest()

    @pytest.mark.parametrize("algorithm", ALWAYS)
    def test_every_buffer_counts_by_its_bytes(self, algorithm: str) -> None:
        with mmap.mmap(-1, 9) as mapped:
            mapped[:] = b"123456789"
            for data in (bytearray(b"123456789"), memoryview(b"x123456789")[1:], mapped):
                running = running_digest(algorithm)
                running.update(data)
                assert running.digest().hex() == VECTORS[algorithm]

    def test_leading_zeros_of_a_checksum_are_kept(self) -> None:
        running = running_digest("crc32")
        assert running.digest().hex() == "00000000"
        assert base64_of(running.digest()) == "AAAAAA=="

    @pytest.mark.parametrize("algorithm", ALWAYS)
    def test_digest_may_be_asked_for_in_between(self, algorithm: str) -> None:
        running = running_digest(algorithm)
        running.update(b"1234")
        assert running.digest() == running.digest()
        running.update(b"56789")
        assert running.digest().hex() == VECTORS[algorithm]

    @pytest.mark.parametrize("algorithm", ["", "MD5", "sha512", "crc64"])
    def test_unknown_algorithm_is_refused_by_name(self, algorithm: str) -> None:
        assert not known(algorithm)
        with pytest.raises(ConfigurationError, match="is not supported") as caught:
            running_digest(algorithm)
        assert repr(algorithm) in str(caught.value)

    @pytest.mark.parametrize("algorithm", ["crc32c", "crc64nvme"])
    def test_checksum_of_awscrt_is_refused_with_what_to_install_where_it_is_not(self, algorithm: str) -> None:
        if known(algorithm):
            pytest.skip("awscrt is installed")
        with pytest.raises(ConfigurationError, match="pip install awscrt"):
            running_digest(algorithm)

    @pytest.mark.parametrize("algorithm", ALWAYS)
    def test_needs_no_more_than_python_for_the_rest(self, algorithm: str) -> None:
        assert known(algorithm)


class TestCombined:
    @given(st.binary(max_size=300), st.binary(max_size=300))
    @example(b"", b"")
    @example(b"a", b"")
    @example(b"", b"a")
    def test_two_pieces_give_the_crc_of_both(self, first: bytes, second: bytes) -> None:
        combined = crc32_combined(zlib.crc32(first), zlib.crc32(second), len(second))
        assert combined == zlib.crc32(first + second)

    @given(st.lists(st.binary(max_size=50)))
    def test_many_pieces_give_the_crc_of_all(self, pieces: list[bytes]) -> None:
        combined = 0
        for piece in pieces:
            combined = crc32_combined(combined, zlib.crc32(piece), len(piece))
        assert combined == zlib.crc32(b"".join(pieces))

    def test_pieces_of_many_megabytes(self) -> None:
        piece = bytes(range(256)) * (20 << 10)  # 5 MiB, S3's smallest part
        second = piece * 3 + b"end"
        combined = crc32_combined(zlib.crc32(piece), zlib.crc32(second), len(second))
        assert combined == zlib.crc32(second, zlib.crc32(piece))

    @given(CRCS, CRCS, st.integers(0, 1 << 40))
    @example(0xDEADBEEF, 1, 1 << 40)
    @example(0xDEADBEEF, 1, (1 << 40) - 1)
    @example(0xDEADBEEF, 1, (1 << 32) - 1)
    @example(0xDEADBEEF, 1, 1 << 32)
    def test_sizes_to_a_tebibyte_follow_the_algebra(self, first: int, second: int, size: int) -> None:
        assert (
            crc32_combined(first, second, size) == reversed_bits(shifted(reversed_bits(first), size)) ^ second
        )

    @given(CRCS, CRCS, CRCS, st.integers(0, 1 << 40), st.integers(0, 1 << 40))
    def test_the_order_of_combining_does_not_matter(
        self, a: int, b: int, c: int, of_b: int, of_c: int
    ) -> None:
        left = crc32_combined(crc32_combined(a, b, of_b), c, of_c)
        assert left == crc32_combined(a, crc32_combined(b, c, of_c), of_b + of_c)


class TestMultipartEtag:
    def test_it_is_the_md5_of_the_md5s_and_their_number(self) -> None:
        parts = [hashlib.md5(part).digest() for part in (b"0" * 256, b"1")]
        assert multipart_etag(parts) == "66d1a1a2ed08fd05c137f316af4ff255-2"  # as moto's own tests have it

    def test_one_part_is_not_the_plain_md5(self) -> None:
        digest = hashlib.md5(b"abc").digest()
        assert multipart_etag([digest]) == f"{hashlib.md5(digest).hexdigest()}-1"


def reversed_bits(value: int) -> int:
    return int(f"{value:032b}"[::-1], 2)


def shifted(value: int, size: int) -> int:
    """*value* times x^(8 * size), by doubling, the highest coefficient first (unlike the code under test)."""
    power, square = 1, 1 << 8
    while size:
        if size & 1:
            power = times(power, square)
        square = times(square, square)
        size >>= 1
    return times(value, power)


def times(left: int, right: int) -> int:
    product = 0
    for place in range(32):
        product ^= (left << place) * (right >> place & 1)
    for place in range(63, 31, -1):
        product ^= (0x104C11DB7 << (place - 32)) * (product >> place & 1)
    return product
