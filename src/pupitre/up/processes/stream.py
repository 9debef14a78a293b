"""The logs of all children as one stream: whole lines, each with the coloured name of its process."""

import contextlib
import sys
from typing import BinaryIO

MAX_LINE = 1 << 16
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)


class LogStream:
    """Writes to ``out`` (standard error). ``plain`` passes lines on as they are, for JSON logs."""

    def __init__(self, out: BinaryIO | None = None, *, plain: bool = False, colours: bool | None = None) -> None:
        self._out = out or sys.stderr.buffer
        self._plain = plain
        self._colours = sys.stderr.isatty() if colours is None else colours
        self._names: list[str] = []

    def line(self, name: str, text: bytes) -> None:
        if not self._plain:
            text = self._prefix(name).encode() + text
        # A terminal that has gone away is no reason to stop the desktops.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._out.write(text + b"\n")
            self._out.flush()

    def _prefix(self, name: str) -> str:
        if name not in self._names:
            self._names.append(name)
        label = f"{name:<8} │ "
        if not self._colours:
            return label
        return f"\x1b[{COLOURS[self._names.index(name) % len(COLOURS)]}m{label}\x1b[0m"


class Lines:
    """Cuts one child's output into lines. A line longer than `MAX_LINE` is cut into several."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            lines.append(self._rest)
            self._rest = b""
        return [line.rstrip(b"\r") for line in lines]

    def end(self) -> list[bytes]:
        rest, self._rest = self._rest, b""
        return [rest] if rest else []
