"""The rounds: contenders take turns (A B C A B C ...), each in a fresh process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import Scale, Workload
from benchmarks.machine import Busy, describe, versions

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 900  # a contender that takes longer has failed


class FailedError(Exception):
    """A process did not do its work; the message says why."""


def run(
    name: str, workload: Workload, directory: Path, scale: Scale, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every contender of a workload.

    Args:
        name: the workload's.
        workload: what to measure.
        directory: for the data; shared trees stay there for the next workload.
        scale: how much.
        tell: hears of progress.

    Returns:
        The record that report.section() prints: JSON values only.

    Raises:
        FailedError: the data could not be made.
    """
    shared, scratch = directory / "shared", directory / "scratch"
    request = {
        "workload": name,
        "contender": None,
        "root": str(directory),
        "shared": str(shared),
        "scratch": str(scratch),
        "scale": scale.name,
        "answer": str(directory / "answer.json"),
    }
    shared.mkdir(exist_ok=True)
    tell(f"{name}: data")
    _process(request)
    absent = {contender.name: "not installed" for contender in workload.contenders if not contender.installed}
    measured: dict[str, list[dict[str, float]]] = {
        contender.name: [] for contender in workload.contenders if contender.name not in absent
    }
    busy = Busy()
    rounds = scale.rounds or workload.rounds
    for number in range(-scale.warm_rounds, rounds):
        for contender in [*measured]:
            tell(f"{name}: {f'round {number + 1} of {rounds}' if number >= 0 else 'warm-up'}, {contender}")
            try:
                _process({**request, "contender": contender})
            except FailedError as error:
                del measured[contender]
                absent[contender] = f"failed: {error}"
                tell(f"{name}: {contender}: {error}")
                continue
            if number >= 0:
                measured[contender].append(json.loads(Path(request["answer"] or "").read_text()))
    return {
        "workload": name,
        "title": scale.fill(workload.title),
        "what": scale.fill(workload.what),
        "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "scale": scale.name,
        "machine": describe(directory),
        "versions": versions(),
        "others": busy.others(),
        "contenders": [
            {
                "name": contender.name,
                "absent": absent.get(contender.name),
                "rounds": [
                    {key: float(f"{value:.4g}") for key, value in one.items()}
                    for one in measured.get(contender.name, ())
                ],
            }
            for contender in workload.contenders
        ],
        "comparisons": [
            {"ours": pair.ours, "peer": pair.peer, "at_least": pair.at_least} for pair in workload.comparisons
        ],
        "memory": dict(workload.memory),
    }


def _process(request: dict[str, str | None]) -> None:
    """Run one child in an empty scratch folder.

    Raises:
        FailedError: it did not end well.
    """
    scratch = Path(request["scratch"] or "")
    scratch.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.child", json.dumps(request)],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"took more than {LIMIT_SECONDS} seconds") from None
    finally:
        shutil.rmtree(scratch)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise FailedError(lines[-1] if lines else f"exited with {done.returncode}")
