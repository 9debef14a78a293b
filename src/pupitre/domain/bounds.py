"""Bounds of what comes from outside: every number, text and list here fits into every database.

A text holds no NUL, which PostgreSQL refuses; halves of surrogate pairs are no UTF-8 and never get this far.
Whatever is decoded into these types may be written and shown.
"""

from typing import Annotated

import msgspec

MOST_TIME = 253_402_300_799_999
"""The last millisecond of the year 9999: what every calendar can show."""
DAY_MS = 24 * 3600 * 1000
MOST_MEMORY_MIB = 2**24
"""16 TiB."""
MOST_VCPUS = 2**16 - 1
MOST_GUESTS = 1000
"""Desktops that one host may report."""
MOST_IMAGES = 200
"""Images that one host may report."""
MOST_FINDINGS = 100
"""Findings in one report."""
MOST_ROWS = 5000
"""Rows of one kind in one message."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Time = Annotated[int, msgspec.Meta(ge=0, le=MOST_TIME)]
"""Unix milliseconds."""
MemoryMib = Annotated[int, msgspec.Meta(ge=0, le=MOST_MEMORY_MIB)]
Vcpus = Annotated[int, msgspec.Meta(ge=0, le=MOST_VCPUS)]
DiskMib = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]

Key = Annotated[str, msgspec.Meta(max_length=36, pattern=r"^[^\x00]*\Z")]
"""An id; empty where there is none."""
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[^\x00]*\Z")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,32}\Z")]
Line = Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[^\x00]*\Z")]
Text = Annotated[str, msgspec.Meta(max_length=4000, pattern=r"^[^\x00]*\Z")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""SHA-256, in hexadecimal."""


def time_near(time: int, now: int) -> int:
    """``time`` (Unix ms) where it is no more than a day from ``now``, else ``now``: another machine's clock said it."""
    return time if abs(time - now) <= DAY_MS else now


def is_shown(time: int) -> bool:
    """Whether a calendar has ``time`` (Unix ms): what was stored by an earlier version may be anything."""
    return 0 <= time <= MOST_TIME


def shown(time: int) -> int:
    """``time``, or the nearest one that a calendar has."""
    return max(0, min(time, MOST_TIME))
