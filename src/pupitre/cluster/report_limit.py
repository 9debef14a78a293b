"""Limit of what one host may have written into the audit log: the rest is counted, and not kept."""

from dataclasses import dataclass

from pupitre.timings import AUDIT_LIMIT_SPAN_MS

LINES = 500
"""Lines that one host may cause within `AUDIT_LIMIT_SPAN_MS`."""


@dataclass(slots=True)
class AuditLimit:
    """Limit of one host, within the present hour. ``refused`` lines were not kept."""

    begun: int = -AUDIT_LIMIT_SPAN_MS
    used: int = 0
    refused: int = 0

    def left(self, *, now: int) -> int:
        """Lines that the host may still cause (``now`` in Unix ms)."""
        if not 0 <= now - self.begun < AUDIT_LIMIT_SPAN_MS:
            self.begun, self.used, self.refused = now, 0, 0
        return LINES - self.used

    def use(self, lines: int, refused: int) -> None:
        self.used += lines
        self.refused += refused
