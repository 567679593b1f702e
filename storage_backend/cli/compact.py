"""compact: returns the space of deleted objects to the disk."""

from __future__ import annotations

import click

from storage_backend.cli.exit_codes import Exit
from storage_backend.cli.operands import backend_at
from storage_backend.cli.output import common


@click.command(no_args_is_help=True)
@click.argument("location")
@common
def compact(location: str, quiet: bool) -> int:
    """Return the space of deleted objects in an SQLite file to the disk.

    Until then, later objects use it. The file is rewritten: this needs free space for two copies of the remaining data and blocks other
    writers. No object is lost if it fails.

    \b
    Examples:
      storage-backend compact sqlite:///archive.db
    """
    del quiet
    with backend_at(location) as storage:
        method = getattr(storage, "compact", None)
        if method is None:
            raise click.UsageError(f"{location!r} is not a database, so there is nothing to compact")
        method()
    return Exit.DONE
