"""How much one host may have written into the audit log: the rest is counted, and not kept."""

from collections import Counter

LINES = 500
"""Lines that one host may cause within `SPAN_MS`."""
SPAN_MS = 3600 * 1000


class Allowance:
    """By host, within the present hour."""

    def __init__(self) -> None:
        self._begun: dict[str, int] = {}
        self._used: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def left(self, host: str, *, now: int) -> int:
        """How many lines the host may still cause (``now`` in Unix ms)."""
        if not 0 <= now - self._begun.get(host, -SPAN_MS) < SPAN_MS:
            self._begun[host], self._used[host], self.refused[host] = now, 0, 0
        return LINES - self._used[host]

    def use(self, host: str, lines: int, refused: int) -> None:
        self._used[host] += lines
        self.refused[host] += refused

    def forget(self, host: str) -> None:
        for counted in (self._begun, self._used, self.refused):
            counted.pop(host, None)
