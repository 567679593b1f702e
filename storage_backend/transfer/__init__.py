"""Copies objects from one backend to another: sync, migrate, verify and plan.

Read in this order:

* `options`, `report`, `progress`: a transfer's settings, result and events. `job`: the state that all its parts share.
* `engine` runs a transfer. `listing` lists both sides in a thread, `planning` merges the listings into actions, `unchanged`
  decides by the `fingerprint` which objects need none. `spool` queues actions, on disk if they are many.
* `worker_pool` executes the actions: `copying`, and `digest_comparison` where fingerprints prove nothing. `retry_budget` limits
  how long failed work is retried, `in_flight` counts the bytes of unfinished objects.
* `journal` records the objects that migrate verified. `deletion` is the last phase.
* Safety: `overlap` refuses a side inside the other, `marker_probe` proves that the sides are different, `own_files` excludes
  journals, manifests and caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage_backend.base import StorageBackend
from storage_backend.defensive import capabilities_of, location_of
from storage_backend.errors import ConfigurationError
from storage_backend.info import Capability
from storage_backend.transfer.engine import TransferEngine
from storage_backend.transfer.journal import Journal, default_path
from storage_backend.transfer.options import TransferOptions, options_from
from storage_backend.transfer.overlap import check_pair
from storage_backend.transfer.own_files import check_apart
from storage_backend.transfer.planning import Action
from storage_backend.transfer.progress import Event
from storage_backend.transfer.report import TransferReport

__all__ = [
    "Action",
    "Event",
    "TransferOptions",
    "TransferReport",
    "migrate",
    "plan",
    "sync",
    "verify",
]


def sync(
    source: StorageBackend, target: StorageBackend, options: TransferOptions | None = None, **keywords: Any
) -> TransferReport:
    """Make *target* hold what *source* holds.

    An object of the same size and time is skipped. Where the target's listing does not show source times, an object that is not newer
    than what was stored is skipped if the target keeps its time elsewhere (in metadata), or lists the source's MD5; else the digests
    of both are compared. Sources without times are compared by size. With `checksum`, content alone decides. An object that fails
    does not stop the others: see `TransferReport.failed`.

    Args:
        source: read from.
        target: written to.
        options: how.
        **keywords: the fields of TransferOptions, instead of `options`.

    Raises:
        ConfigurationError: an option is wrong, or one place lies inside the other.
        StorageError: a side cannot be listed, the target is full, or credentials are refused.
    """
    chosen = options_from(options, keywords)
    for name in ("delete_source", "journal", "manifest"):
        if getattr(chosen, name):
            raise ConfigurationError(f"sync has no option {name}: use migrate", parameter=name)
    check_pair(source, target, deletes=chosen.delete)
    return TransferEngine("sync", source, target, chosen).run()


def migrate(
    source: StorageBackend, target: StorageBackend, options: TransferOptions | None = None, **keywords: Any
) -> TransferReport:
    """Make *target* hold what *source* holds, and prove it: every digest is verified and kept in a journal.

    After an interruption at any instant, the same call resumes; it does not copy verified objects again.

    Args:
        source: read from.
        target: written to.
        options: how.
        **keywords: the fields of TransferOptions, instead of `options`.

    Raises:
        ConfigurationError: an option is wrong, or one place lies inside the other.
        UnavailableError: another run holds the journal of this pair.
        StorageError: a side cannot be listed, the target is full, or credentials are refused.
    """
    chosen = options_from(options, keywords)
    check_pair(source, target, deletes=chosen.delete or chosen.delete_source)
    if chosen.delete_source and chosen.flush and Capability.FLUSH not in capabilities_of(target):
        raise ConfigurationError(
            f"{location_of(target)} cannot promise that writes survive power loss: "
            "delete_source needs an explicit flush=False (--no-flush)",
            parameter="flush",
        )
    chosen.verification("migrate")
    where = location_of(source), location_of(target)
    path = chosen.journal if chosen.journal is not None else default_path(*where)
    check_apart(source, target, path, chosen.manifest)
    if chosen.dry_run and not Path(path).exists():
        return TransferEngine("migrate", source, target, chosen).run()
    with Journal(path, *where) as journal:
        return TransferEngine("migrate", source, target, chosen, journal).run()


def verify(
    source: StorageBackend, target: StorageBackend, options: TransferOptions | None = None, **keywords: Any
) -> TransferReport:
    """Compare two backends, object by object. Changes nothing.

    Differences are in `TransferReport.differences`; what could not be compared is in `failed`.

    Args:
        source: one.
        target: the other.
        options: how.
        **keywords: the fields of TransferOptions, instead of `options`.

    Raises:
        ConfigurationError: an option is wrong.
        StorageError: a side cannot be listed, or credentials are refused.
    """
    chosen = options_from(options, keywords)
    for name in ("delete_source", "journal", "manifest", "delete", "dry_run", "checksum"):
        if getattr(chosen, name):
            hint = '; verify="digest" compares content' if name == "checksum" else ""
            raise ConfigurationError(f"verify changes nothing, so it has no {name}{hint}", parameter=name)
    return TransferEngine("verify", source, target, chosen).run()


def plan(
    source: StorageBackend, target: StorageBackend, options: TransferOptions | None = None, **keywords: Any
) -> Iterator[Action]:
    """The actions of a `sync`, one per object, ascending by identifier, each with its reason. Changes nothing.

    Args:
        source: to be read from.
        target: to be written to.
        options: how.
        **keywords: the fields of TransferOptions, instead of `options`.

    Raises:
        ConfigurationError: an option is wrong, or one place lies inside the other.
        StorageError: a side cannot be listed.
    """
    chosen = options_from(options, keywords)
    check_pair(source, target, deletes=chosen.delete)
    return TransferEngine("sync", source, target, chosen).plan()
