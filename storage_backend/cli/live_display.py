"""LiveDisplay: a progress display that is redrawn in place and fits the terminal's width."""

from __future__ import annotations

import textwrap
from typing import TextIO

import rich.live
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.text import Text
from typing_extensions import override

from storage_backend.cli.progress import SEPARATOR, Status

BAR = 50  # columns; the longest bar
LEAST_BAR = 8  # columns; a shorter bar is left out


class LiveDisplay:
    """Shows the last status until it is closed."""

    def __init__(self, stream: TextIO) -> None:
        console = _Console(file=stream, force_terminal=True, force_interactive=True, highlight=False)
        self._live = rich.live.Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def show(self, status: Status) -> None:
        """Show *status* instead of the last one."""
        self._live.update(DrawnLines(status), refresh=True)

    def close(self) -> None:
        """Erase it."""
        self._live.stop()


class _Console(Console):
    """Leaves the cursor visible, in case the program is killed."""

    @override
    def show_cursor(self, show: bool = True) -> bool:
        return False


class DrawnLines:
    """A status as rich draws it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width - 1, 1)  # some terminals begin a new line after the last column
        status, ascii_only = self._status, options.ascii_only

        def text(line: str, style: str = "", end: str = "\n") -> Text:
            line = line.replace(SEPARATOR, " | ") if ascii_only else line
            return Text(line, style=style, end=end, no_wrap=True)

        percent = status.percent
        head = " ".join([*([f"{percent}%"] if percent is not None else []), status.eta]).strip()
        lines = textwrap.wrap(head, width)
        for number, line in enumerate(lines, 1):
            bar = min(width - len(line) - 1, BAR)
            if percent is None or number < len(lines) or bar < LEAST_BAR:
                yield text(line, "bold")
            else:
                yield text(f"{line} ", "bold", end="")
                yield ProgressBar(100, percent, width=bar)
                yield text("")
        for line in status.lines(width):
            yield text(line)
        for line in textwrap.wrap(status.waiting, width):
            yield text(line, "yellow")
