"""compact: gives the space of deleted objects back to the disk."""

from __future__ import annotations

import click

from storage_backend.cli.exit_codes import Exit
from storage_backend.cli.operands import place_at
from storage_backend.cli.output import common


@click.command(no_args_is_help=True)
@click.argument("location")
@common
def compact(location: str, quiet: bool) -> int:
    """Give the space of what was deleted from an SQLite file back to the disk.

    Until then, later objects use it. The file is written anew, which takes room for two more of what is left in it; what is there stays
    there whatever happens.

    \b
    Examples:
      storage-backend compact sqlite:///archive.db
    """
    del quiet
    with place_at(location) as storage:
        give_back = getattr(storage, "compact", None)
        if give_back is None:
            raise click.UsageError(f"{location!r} is no database, so there is nothing to compact")
        give_back()
    return Exit.DONE
