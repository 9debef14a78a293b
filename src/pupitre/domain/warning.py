"""Warnings about a host: a closed list of codes, each with the sentence that people read.

To add a code, add its row to `WarningCode`: status rows, pages, REST, command line, doctor and metrics follow.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from pupitre.domain.bounds import MOST_GUESTS, MOST_IMAGES

MOST_WARNINGS = 16
"""Warnings of one host."""
MOST_TEXT = 200
"""Characters of a warning's own words."""


class WarningCode(StrEnum):
    """``sentence`` takes the host's title, the warning's number and its text.

    ``sets_aside``: no desktop is started on the host while it lasts. ``by_host``: the host may say so of itself;
    the others are what the cluster observes of it.
    """

    sentence: str
    sets_aside: bool
    by_host: bool

    def __new__(cls, code: str, sentence: str, sets_aside: bool = False, by_host: bool = False) -> "WarningCode":
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence, member.sets_aside, member.by_host = sentence, sets_aside, by_host
        return member

    CLOCK_AHEAD = "clock_ahead", "The clock of {host} is {number} s ahead. Set it right, by NTP for example."
    CLOCK_BEHIND = "clock_behind", "The clock of {host} is {number} s behind. Set it right, by NTP for example."
    CERTIFICATE_EXPIRES = (
        "certificate_expires",
        "The certificate of {host} expires in {number} days and was not renewed. Run `pupitre pki issue {text}` where"
        " the authority is, and copy the folder to {host}.",
        False,
        True,
    )
    CERTIFICATE_EXPIRED = (
        "certificate_expired",
        "The certificate of {host} has expired: it comes back from no interruption. Run `pupitre pki issue {text}`"
        " where the authority is, and copy the folder to {host}.",
        False,
        True,
    )
    DISK_FULL = (
        "disk_full",
        "The disk for desktops on {host} is nearly full: {number} MiB are free. Nothing starts there, and guests that"
        " write are paused until there is space.",
        False,
        True,
    )
    DISK_PROMISED = (
        "disk_promised",
        "The disks of the desktops on {host} may still grow by {number} GiB, and {text} are free. Add space, or stop"
        " desktops before it is full.",
        False,
        True,
    )
    MEMORY_OVER = (
        "memory_over",
        "The desktops on {host} take {number} MiB of memory more than is counted; that much less is given out.",
        False,
        True,
    )
    REPORTS_REFUSED = "reports_refused", "The reports of {host} are refused, so nothing starts there: {text}", True
    KNOWS_MORE = (
        "knows_more",
        "{host} says that it knows more than the cluster's database, so nothing starts there."
        " See what it has and decide: pupitre cluster confirm",
        True,
    )
    GUESTS_LEFT = (
        "guests_left",
        "{host} has {number} guests that the cluster has not ordered of it; they are left as they are."
        " End them on the host, or take it out of the cluster.",
    )
    IMAGES_REFUSED = "images_refused", "{number} images of {host} are not taken: {text}"
    PARTS_REFUSED = "parts_refused", "{number} parts of the reports of {host} are refused: {text}"
    TOO_MANY_GUESTS = "too_many_guests", f"{{host}} reports {{number}} guests; only {MOST_GUESTS} are looked at."
    TOO_MANY_IMAGES = "too_many_images", f"{{host}} reports {{number}} images; only {MOST_IMAGES} are looked at."
    TOO_MANY_FINDINGS = (
        "too_many_findings",
        "{host} says more for the audit log than one host may: {number} lines within an hour are left out.",
    )


@dataclass(frozen=True, slots=True)
class HostWarning:
    """``number`` is in the unit of its code's sentence. ``code`` may be one that a newer cluster has."""

    code: Annotated[str, msgspec.Meta(pattern=r"^[a-z_]{1,32}\Z")]
    number: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] = 0
    text: Annotated[str, msgspec.Meta(max_length=MOST_TEXT, pattern=r"^[^\x00-\x1f\x7f]*\Z")] = ""

    def sentence(self, host: str) -> str:
        """Sentence that people read; ``host`` is the host's label or name."""
        kind = kind_of(self.code)
        if kind is None:
            return f"{host}: {self.code.replace('_', ' ')} {self.number} {self.text}".rstrip()
        return kind.sentence.format(host=host, number=self.number, text=self.text)


_KINDS = {kind.value: kind for kind in WarningCode}


def kind_of(code: str) -> WarningCode | None:
    """Kind of a code; None for a code of a newer version."""
    return _KINDS.get(code)


def warn(code: WarningCode, number: int = 0, text: str = "") -> HostWarning:
    """A warning within the bounds that every database and every reader holds."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text[:MOST_TEXT])
    return HostWarning(str(code), max(-(2**31), min(number, 2**31 - 1)), shown)


def set_aside_by(warnings: tuple[HostWarning, ...]) -> HostWarning | None:
    """The first warning that keeps desktops from being started on the host."""
    return next((one for one in warnings if (kind := kind_of(one.code)) and kind.sets_aside), None)
