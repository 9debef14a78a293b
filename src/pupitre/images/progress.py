"""Progress of a long step."""

from typing import Protocol


class Progress(Protocol):
    """Told the step's text and how much of the whole is done, 0 to 1. May raise to stop the work."""

    def __call__(self, step: str, fraction: float) -> None: ...


def silent(step: str, fraction: float) -> None:
    """Progress that nobody reads."""


def part(progress: Progress, start: float, end: float) -> Progress:
    """A `Progress` whose 0 to 1 is ``start`` to ``end`` of ``progress``."""

    def inner(step: str, fraction: float) -> None:
        progress(step, start + (end - start) * min(1.0, max(0.0, fraction)))

    return inner
