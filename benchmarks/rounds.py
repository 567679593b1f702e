"""Runs the rounds of a workload: contenders take turns (A B C A B C ...), each in a new process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.harness import Scale, Workload
from benchmarks.machine import Busy, describe, now, versions
from benchmarks.servers import Server, ServerError

ROOT = Path(__file__).parent.parent
LIMIT_SECONDS = 900  # a contender that takes longer has failed


class FailedError(Exception):
    """A process failed; the message says why."""


def run(
    name: str, workload: Workload, directory: Path, scale: Scale, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every contender of a workload.

    Args:
        name: the workload's.
        workload: what to measure.
        directory: for the data; shared trees stay there for the next workload.
        scale: the sizes.
        tell: is called with lines of progress.

    Returns:
        The measurement that report.section() prints: JSON values only.

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
        "endpoint": "",
    }
    shared.mkdir(exist_ok=True)
    if workload.server is None or workload.server.path is not None:
        tell(f"{name}: data")
        _process(request)
    absent = {contender.name: "not installed" for contender in workload.contenders if not contender.installed}
    if workload.server is not None and workload.server.path is None:
        reason = f"not measured: {workload.server.program}, the server, is not installed"
        absent = {contender.name: reason for contender in workload.contenders}
    measured: dict[str, list[dict[str, float]]] = {
        contender.name: [] for contender in workload.contenders if contender.name not in absent
    }
    busy = Busy()
    rounds = scale.rounds or workload.rounds
    for number in range(-scale.warm_rounds, rounds):
        for contender in [*measured]:
            tell(f"{name}: {f'round {number + 1} of {rounds}' if number >= 0 else 'warm-up'}, {contender}")
            try:
                _process({**request, "contender": contender}, workload.server)
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
        "measured": now(),
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
        "growth": dict(workload.growth),
        "limits": dict(workload.limits),
        "facts": [
            {
                "name": fact.name,
                "form": fact.form,
                "more_is_better": fact.more_is_better,
                "targets": dict(fact.targets),
            }
            for fact in workload.facts
        ],
        # Of the large object, so it shrinks with it.
        "cpu": [
            {"ours": limit.ours, "yardstick": limit.yardstick, "above": limit.above * scale.large / (1 << 30)}
            for limit in workload.cpu
        ],
    }


def _process(request: dict[str, str | None], server: Server | None = None) -> None:
    """Run one child process in an empty scratch folder, with the server if there is one.

    Raises:
        FailedError: it failed.
    """
    scratch, root = Path(request["scratch"] or ""), Path(request["root"] or "")
    scratch.mkdir()
    running = nullcontext("") if server is None else server.running(root, root / "server")
    try:
        with running as endpoint:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.child", json.dumps({**request, "endpoint": endpoint})],
                check=False,
                capture_output=True,
                text=True,
                cwd=ROOT,
                env=_environment(root),
                timeout=LIMIT_SECONDS,
            )
    except subprocess.TimeoutExpired:
        raise FailedError(f"took more than {LIMIT_SECONDS} seconds") from None
    except ServerError as error:
        raise FailedError(str(error)) from None
    finally:
        shutil.rmtree(scratch)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise FailedError(lines[-1] if lines else f"exited with {done.returncode}")


def _environment(root: Path) -> dict[str, str]:
    """The environment without variables that lead S3 clients to an account, a proxy or other settings."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RCLONE_", "S3_"))
    }
    nothing = str(root / "nothing")
    return kept | {
        "AWS_CONFIG_FILE": nothing,
        "AWS_SHARED_CREDENTIALS_FILE": nothing,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "XDG_STATE_HOME": str(root / "state"),
    }
