"""Zipf-distributed reads, and the hits of an ideal LRU cache for comparison."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


def zipf(count: int, reads: int, exponent: float = 0.9, seed: int = 0) -> list[int]:
    """*reads* numbers below *count*, the same on every run: the object of rank r is read as r ** -exponent.

    Ranks are assigned at random, so that they do not depend on the sizes.
    """
    chance = random.Random(seed)  # noqa: S311 - the same on every run is the point
    by_rank = list(range(count))
    chance.shuffle(by_rank)
    weights = itertools.accumulate((rank + 1) ** -exponent for rank in range(count))
    return chance.choices(by_rank, cum_weights=[*weights], k=reads)


def sizes(count: int, least: int, most: int, seed: int = 0) -> list[int]:
    """*count* sizes from *least* to *most* bytes whose logarithms are spread evenly, the same on every run."""
    chance = random.Random(seed)  # noqa: S311 - as above
    return [round(least * (most / least) ** chance.random()) for _ in range(count)]


class IdealLru(Generic[K]):
    """A simulated LRU cache that never exceeds *limit* bytes.

    Attributes:
        size: bytes that it holds.
        hits: reads of what it held.
        misses: reads of what it did not.
        peak: the most bytes that it ever held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = self.hits = self.misses = self.peak = 0
        self._sizes: OrderedDict[K, int] = OrderedDict()

    def read(self, key: K, size: int) -> bool:
        """Read an object of *size* bytes. One larger than the limit is not cached and evicts nothing.

        Returns:
            Whether it was held.
        """
        if key in self._sizes:
            self._sizes.move_to_end(key)
            self.hits += 1
            return True
        self.misses += 1
        if size <= self.limit:
            while self.size + size > self.limit:
                self.size -= self._sizes.popitem(last=False)[1]
            self._sizes[key] = size
            self.size += size
            self.peak = max(self.peak, self.size)
        return False
