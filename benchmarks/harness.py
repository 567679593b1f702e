"""The parts of a workload: scale, contenders, comparisons, targets."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.finding import find_program
from benchmarks.servers import Server

Pass: TypeAlias = Callable[[], Any]

OURS = "storage-backend"
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Scale:
    """The sizes of all workloads.

    Attributes:
        name: as printed.
        objects: distinct small objects of single operations.
        tree: objects in the trees that are listed and compared.
        batch: small objects that are migrated.
        large: bytes of the large object.
        seconds: minimum duration of a loop of single operations in a round.
        rounds: measured rounds; None means as many as the workload says.
        warm_rounds: rounds before the first measured one.
    """

    name: str
    objects: int
    tree: int
    batch: int
    large: int
    seconds: float
    rounds: int | None = None
    warm_rounds: int = 1

    def fill(self, text: str) -> str:
        """*text* with the fields of this scale in braces replaced; bytes as MiB."""
        return text.format(
            **{
                **vars(self),
                "large": _mebibytes(self.large),
                "half_batch": self.half_batch,
                "half_tree": self.half_tree,
                "half_large": _mebibytes(self.half_large),
                "double_large": _mebibytes(self.double_large),
            }
        )

    def with_fewer(self, fewer: int) -> Scale:
        """This scale with one in *fewer* of the small objects."""
        return self if fewer == 1 else replace(self, batch=max(self.batch // fewer, 2))

    @property
    def half_batch(self) -> int:
        """Half of the small objects."""
        return self.batch // 2

    @property
    def half_tree(self) -> int:
        """Half of the tree's objects."""
        return self.tree // 2

    @property
    def half_large(self) -> int:
        """Half of the large object's bytes, and at least 1 MiB."""
        return max(self.large // 2, MEBIBYTE)

    @property
    def double_large(self) -> int:
        """Twice the large object's bytes."""
        return self.large * 2


def _mebibytes(size: int) -> str:
    return f"{size // MEBIBYTE:,} MiB"


SCALES = {
    scale.name: scale
    for scale in (
        Scale("quick", 50, 300, 60, MEBIBYTE, 0.01, rounds=2, warm_rounds=0),
        Scale("default", 1_000, 100_000, 10_000, 256 * MEBIBYTE, 0.25),
        Scale("full", 1_000, 100_000, 10_000, 1024 * MEBIBYTE, 0.5),
    )
}


@dataclass(frozen=True)
class Place:
    """The folders, the scale and the server of one round.

    Attributes:
        root: an absolute path above both of the following.
        shared: the data of `Workload.setup`, for all contenders.
        scratch: an empty folder for this contender in this round.
        scale: the sizes.
        endpoint: URL of the workload's server, or "".
    """

    root: Path
    shared: Path
    scratch: Path
    scale: Scale
    endpoint: str = ""


@dataclass(frozen=True)
class Contender:
    """One library or program that does the work of a workload.

    Attributes:
        name: as printed.
        prepare: returns the pass that is timed; untimed itself. Runs in the process of the contender and imports what it needs.
        module: the module that it needs; without it the contender is "not installed".
        program: the program that it needs.
        device: the path that it needs.
        fewer: it gets one in so many of the small objects, because all would take too long. Times are per object.
        result: converts the result of a pass for `Workload.check`; untimed.
        facts: converts the result of a pass to numbers, by the names of `Workload.facts`; untimed, after the memory was measured.
    """

    name: str
    prepare: Callable[[Place], Pass]
    module: str | None = None
    program: str | None = None
    device: str | None = None
    fewer: int = 1
    result: Callable[[Any], Any] = lambda value: value
    facts: Callable[[Any], Mapping[str, float]] = lambda _value: {}

    @property
    def installed(self) -> bool:
        """Whether this machine has what the contender needs."""
        if self.device is not None and not os.path.exists(self.device):
            return False
        if self.module is not None:
            try:
                return importlib.util.find_spec(self.module) is not None
            except ModuleNotFoundError:
                return False
        return self.program is None or find_program(self.program) is not None


@dataclass(frozen=True)
class Comparison:
    """Two contenders whose times are compared.

    Attributes:
        ours: name of our contender.
        peer: name of the peer's.
        at_least: the target for the peer's time divided by ours; None for no target.
    """

    ours: str
    peer: str
    at_least: float | None = None


@dataclass(frozen=True)
class CpuLimit:
    """A limit on the CPU time of a contender, relative to a yardstick.

    Attributes:
        ours: name of our contender.
        yardstick: name of the contender that does only the unavoidable work.
        above: CPU seconds for each GiB of the large object by which ours may exceed it.
    """

    ours: str
    yardstick: str
    above: float


@dataclass(frozen=True)
class Fact:
    """A number that is measured beside the time; the worst round counts.

    Attributes:
        name: as printed, and the key in `Contender.facts`.
        form: how a number is printed, for `str.format`.
        more_is_better: else less is.
        targets: contender -> the maximum (or the minimum, where more is better).
    """

    name: str
    form: str = "{:,.0f}"
    more_is_better: bool = False
    targets: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """The same work for several contenders.

    Attributes:
        title: as printed, with fields of `Scale` in braces.
        what: what is measured, what is not, and how the contenders differ; braces as in the title.
        contenders: in the order of a round.
        setup: makes the shared data, untimed. Keeps existing data: workloads share trees.
        check: raises AssertionError unless a contender did the work. Untimed.
        operations: the number of operations in a pass, by which its time is divided.
        loop: passes are short: after one for warm-up, a round repeats them for `Scale.seconds`. Otherwise a round is one
            pass of a new process.
        rounds: measured rounds.
        comparisons: the ratios to compute, and their targets.
        memory: contender -> maximum peak RSS in bytes.
        growth: contender -> maximum growth of the peak RSS after `prepare`, in bytes.
        cpu: limits on the CPU time.
        limits: contender -> maximum seconds.
        facts: other numbers that contenders report.
        server: the server of all contenders; each round of each contender gets a new one.
    """

    title: str
    what: str
    contenders: tuple[Contender, ...]
    setup: Callable[[Place], None]
    check: Callable[[Place, Any], None]
    operations: Callable[[Scale], int] = lambda _scale: 1
    loop: bool = False
    rounds: int = 5
    comparisons: tuple[Comparison, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    growth: Mapping[str, int] = field(default_factory=dict)
    cpu: tuple[CpuLimit, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    facts: tuple[Fact, ...] = ()
    server: Server | None = None


def peer(module: str) -> Any:
    """The module of a peer, untyped: type checkers need not find it."""
    return importlib.import_module(module)


def each(operation: Callable[[Any], Any], arguments: Iterable[Any]) -> Pass:
    """A pass that calls *operation* once for each argument and returns what the last call returned."""
    every = list(arguments)

    def run() -> Any:
        result = None
        for argument in every:
            result = operation(argument)
        return result

    return run


def expect(condition: bool, message: str) -> None:
    """Like `assert`, but also under `python -O`."""
    if not condition:
        raise AssertionError(message)
