"""What a workload is made of: data, contenders, and what is expected of their ratios."""

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
    """How much of everything.

    Attributes:
        name: as printed.
        objects: distinct small objects that single operations go round.
        tree: objects in the trees that are listed and compared.
        batch: small objects that are migrated.
        large: bytes of the one large object.
        seconds: at least this long a loop of single operations runs in a round.
        rounds: None leaves it to the workload.
        warm_rounds: rounds before the first that counts.
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
        """*text* with the numbers of this scale in its braces; bytes as MiB."""
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
        """The same with that fraction of the small objects."""
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
    """Where a contender finds its data, and where it may write.

    Attributes:
        root: an absolute path above both of the following.
        shared: made by `Workload.setup`, the same for all.
        scratch: empty; this contender's in this round.
        scale: how much.
        endpoint: URL of the workload's server, if it has one.
    """

    root: Path
    shared: Path
    scratch: Path
    scale: Scale
    endpoint: str = ""


@dataclass(frozen=True)
class Contender:
    """One way to do the work.

    Attributes:
        name: as printed.
        prepare: untimed; gives the pass that is timed. Runs in a process of its own, and imports what it needs there.
        module: the peer's module; where it is missing, the contender is "not installed".
        program: the same for a program.
        device: the same for a path.
        fewer: it is given one in so many of the small objects, since it would take too long for all. Times are per
            object.
        result: untimed; from what a pass returned to what `Workload.check` takes.
        facts: untimed, and after the memory was looked at; from what a pass returned to numbers by the names of
            `Workload.facts`. What it does not name is not known of this contender.
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
        """Whether this machine has what is needed."""
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
    """Two contenders whose times are set against each other.

    Attributes:
        ours: name of our contender.
        peer: name of the peer's.
        at_least: the target, in units of the peer's speed: 2.0 asks for half of its time. None asks for nothing.
    """

    ours: str
    peer: str
    at_least: float | None = None


@dataclass(frozen=True)
class CpuLimit:
    """How much more CPU time than a yardstick a contender may take.

    Attributes:
        ours: name of our contender.
        yardstick: name of the one that does only what cannot be saved.
        above: CPU seconds for a GiB of the large object that ours may take beyond that.
    """

    ours: str
    yardstick: str
    above: float


@dataclass(frozen=True)
class Fact:
    """Something that is counted beside the time, and judged by the worst round.

    Attributes:
        name: as printed, and what contenders report it by.
        form: how a number is printed, for `str.format`.
        more_is_better: else less is.
        targets: contender -> how much of it there may be at most (at least, where more is better).
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
        what: what is measured, what is not, and what is not alike about the contenders; braces as in the title.
        contenders: in the order of a round.
        setup: makes what is shared, untimed. Leaves what it finds there: workloads share trees.
        check: raises AssertionError unless a contender did the work. Untimed.
        operations: what a pass does, by which its time is divided.
        loop: whether passes are short: one runs uncounted first, and a round lasts for `Scale.seconds`. Otherwise a
            round is exactly one pass of a fresh process.
        rounds: that count.
        comparisons: what is asked of the ratios.
        memory: contender -> the most bytes that its peak RSS may have.
        growth: contender -> the most bytes that its peak RSS may have beyond what it had when it was prepared.
        cpu: what is asked of the CPU time.
        limits: contender -> the most seconds that it may take.
        facts: what contenders report beside the time.
        server: that all contenders talk to; each process that is measured finds a fresh one.
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
    """The peer's *module*, untyped: type checkers need not have it."""
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
    """Raise an AssertionError with *message* unless *condition*; also under `python -O`."""
    if not condition:
        raise AssertionError(message)
