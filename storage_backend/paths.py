"""expanded: a path of this machine with "~" expanded."""

from __future__ import annotations

import os
from typing import overload


@overload
def expanded(path: str | os.PathLike[str]) -> str: ...
@overload
def expanded(path: str | os.PathLike[str] | None) -> str | None: ...
def expanded(path: str | os.PathLike[str] | None) -> str | None:
    """*path* with a "~" or "~user" that it begins with replaced by that home directory, as a shell does; None stays None.

    Every path of this machine that a user gives comes through here, so that each means what the others do. Where there
    is no such user, the name is taken as it is; "./~" is always the name of a file.
    """
    return None if path is None else os.path.expanduser(os.fspath(path))  # noqa: PTH111 - stays text; Path's raises
