"""Every message, for both ends of every link.

JSON, tagged by ``type``. A reader ignores fields it does not know, so fields may be
added with a default; nothing is renamed or removed. `VERSIONS` only grows, and
``tests/golden`` holds one message of each type for every version: they decode for ever.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from pupitre.domain.bounds import (
    MOST_FINDINGS,
    MOST_GUESTS,
    MOST_IMAGES,
    Digest,
    Line,
    Name,
    Number,
    Small,
    Text,
    Time,
    Uuid,
    Word,
)
from pupitre.domain.command import CommandState, Fault, Order, RegisterHost, desktop_of
from pupitre.domain.host import HostFacts
from pupitre.domain.image import ImageSpec, spec_fault
from pupitre.domain.report import (
    CopyReport,
    DesktopReport,
    HostFinding,
    HostName,
    HostReport,
    LastKnownPosition,
    Proof,
    Run,
    Said,
)
from pupitre.domain.signed_manifest import SignedManifest
from pupitre.domain.status import Rows
from pupitre.domain.warning import MOST_WARNINGS, HostWarning
from pupitre.errors import MessageError
from pupitre.wire.salvage import PartKind, salvage

VERSIONS = (1,)
MAX_SIZE = 1_000_000
"""Bytes; the broker's ``max_payload`` is 1 MiB."""

Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]
_IS_ID, _IS_HOST = (
    re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"),
    re.compile(r"^[a-z0-9][a-z0-9-]{0,31}\Z"),
)
MOST, MOST_PORT = 255, 65535


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The base of all messages. ``v`` is the version of `VERSIONS` that the sender speaks."""

    v: int = VERSIONS[-1]


# Endpoint and cluster


class StatusQuery(Message, frozen=True, tag="hello"):
    """Endpoint: are you there, and where do your changes stand? Answered by `StatusPosition`."""


class StatusPosition(Message, frozen=True, tag="mark"):
    """Cluster: my changes stand here. Also sent at intervals, so that a lost last change is noticed."""

    epoch: Number
    sequence: Number


class Submit(Message, frozen=True, tag="submit"):
    """Endpoint: carry this out. Answered by `Done` once the cluster has journalled it. Repeatable."""

    id: Uuid
    user: Line
    order: Order
    deadline: Time


class Abandon(Message, frozen=True, tag="abandon"):
    """Endpoint: nobody waits for this command any more; undo what it made. Answered by `Done`.

    It says all that `Submit` says, so that a command the cluster never saw is refused when it comes late.
    """

    id: Uuid
    user: Line
    order: Order
    deadline: Time


class GetPage(Message, frozen=True, tag="get_page"):
    """Endpoint: the rows of ``section`` after ``after``. Answered by `Page`."""

    section: Name
    after: Line | None = None


class Page(Message, frozen=True, tag="page"):
    """``next`` is the ``after`` of the next page, None on the last."""

    epoch: Number
    sequence: Number
    rows: Rows
    next: Line | None = None


class Changed(Message, frozen=True, tag="changed"):
    """Cluster: the rows that changed after ``after``, up to ``sequence``, as they are now."""

    epoch: Number
    after: Number
    sequence: Number
    rows: Rows


class Outcome(Message, frozen=True, tag="outcome"):
    """Cluster: what came of a command, with the rows it touched as of ``sequence``. Sent until answered by `Done`.

    ``halts``: the cluster ends with this outcome, and so does the endpoint. Told after a restart, a halt is history.
    """

    id: Uuid
    state: CommandState
    fault: Fault | None = None
    rows: Rows = Rows()
    epoch: Number = 0
    sequence: Number = 0
    halts: bool = False


class RevokeSessions(Message, frozen=True, tag="end_sign_ins"):
    """Endpoint to cluster, and on to each host: who came by these sign-ins shall watch no screen any more.

    ``bearers`` are SHA-256 (hex) of cookies and tokens. Answered by `Done` when every host that is there has done it.
    """

    bearers: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=10_000)]
    epoch: Number = 0


class AuditNotice(Message, frozen=True, tag="noted"):
    """Cluster: what it settled by itself, for the audit log. Sent until answered by `Done`; written once by ``id``."""

    id: Uuid
    at: Time
    action: Word
    subject: Line
    detail: Text


# Cluster and host


class Describe(Message, frozen=True, tag="describe"):
    """Cluster: all you know. Answered by a full `Report`, or sent to all hosts, which then report."""

    epoch: Number


class EnsureDesktop(Message, frozen=True, tag="ensure_desktop"):
    """Cluster: this desktop shall run. Answered by `Done` once the host has journalled it.

    ``sequence`` is where the cluster's changes stood; a cluster that knows less one day has lost something.
    """

    epoch: Number
    desktop: Uuid
    boot: Small
    spec: ImageSpec
    sequence: Number = 0
    owner: Line = ""
    proof: Proof = ""


class EnsureGone(Message, frozen=True, tag="ensure_gone"):
    """Cluster: nothing of this desktop shall be left. Answered by `Done`.

    Its guest is asked to shut down and ended after ``grace`` seconds; a repeat may shorten that, never prolong it.
    """

    epoch: Number
    desktop: Uuid
    grace: Seconds = 0
    sequence: Number = 0
    proof: Proof = ""


class PowerOff(Message, frozen=True, tag="power_off"):
    """Cluster: no desktop shall be left, then this machine shall shut down. Answered by `Done`.

    Sent until the host says `HostShutdownNotice`. ``at_once``: guests end without being asked to shut down.
    ``run`` is the process that is meant, as its reports say, if one was heard: a late copy must not end the next one.
    """

    epoch: Number
    at_once: bool = False
    run: Run = ""


_PARTS = {
    "desktops": PartKind(DesktopReport, MOST_GUESTS),
    "copies": PartKind(CopyReport, MOST_IMAGES),
    "findings": PartKind(HostFinding, MOST_FINDINGS),
    "warnings": PartKind(HostWarning, MOST_WARNINGS),
    "manifests": PartKind(SignedManifest, MOST_IMAGES),
}
_OPTIONAL = {"facts": HostFacts | None, "heard": LastKnownPosition | None}
"""Lists in a report, of which each item is taken alone where the report as a whole cannot be used."""


class Report(HostReport, frozen=True, kw_only=True, tag_field="type", tag="report"):
    """Host: how it is here. Sent until answered by `Done`. See `pupitre.wire.salvage` for ``left_out``."""

    v: int = VERSIONS[-1]


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Host: alive; ``number`` is that of the last report, so that a lost one is noticed.

    ``at`` is the time by the host's clock (Unix ms); 0 does not say it.
    """

    host: HostName
    run: Run
    number: Number
    at: Time = 0


class HostShutdownNotice(Message, frozen=True, tag="farewell"):
    """Host: nothing is left here and this machine shuts down, as `PowerOff` wanted it. Answered by `Done`."""

    host: HostName
    run: Run


# Any


class MessageBatch(Message, frozen=True, tag="bundle"):
    """Messages that go the same way at the same time, or their answers in the same order; None is no answer."""

    parts: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(max_length=1024)]


class Done(Message, frozen=True, tag="done"):
    """Taken, and safely kept if it had to be; a report of a host that is not registered is not ``kept``."""

    kept: bool = True


class Refused(Message, frozen=True, tag="refused"):
    """Refusal: not taken, and sending it again will not help."""

    code: Name
    reason: Said


AnyMessage = (
    StatusQuery
    | StatusPosition
    | Submit
    | Abandon
    | GetPage
    | Page
    | Changed
    | Outcome
    | AuditNotice
    | RevokeSessions
    | Describe
    | EnsureDesktop
    | EnsureGone
    | PowerOff
    | Report
    | Heartbeat
    | HostShutdownNotice
    | MessageBatch
    | Done
    | Refused
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> AnyMessage:
    """Raises `MessageError` for anything that is not one of ours."""
    if len(data) > MAX_SIZE:
        raise MessageError(f"A message of {len(data)} bytes is over the limit of {MAX_SIZE}.")
    try:
        message: AnyMessage = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if (report := _salvaged(data)) is not None:
            return report
        raise MessageError(f"Not a message: {error}") from error
    if isinstance(message, Submit | Abandon):
        _check(message.order)
    elif isinstance(message, EnsureDesktop) and (fault := spec_fault(message.spec)):
        raise MessageError(fault)
    return message


def _salvaged(data: bytes) -> Report | None:
    """One bad guest, image or number costs its part of a report, and not the host."""
    try:
        usable = salvage(data, "report", _PARTS, _OPTIONAL)
        message = None if usable is None else _decoder.decode(usable)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return message if isinstance(message, Report) else None


def _check(order: Order) -> None:
    """Refuse an order that no subject, path or database could hold."""
    desktop = desktop_of(order)
    if desktop is not None and not _IS_ID.match(desktop):
        raise MessageError(f"{desktop[:50]!r} is not the id of a desktop.")
    if isinstance(order, RegisterHost) and not _IS_HOST.match(order.name):
        raise MessageError(f"{order.name[:50]!r} is not the name of a host.")
    for field in order.__struct_fields__:
        value = getattr(order, field)
        if isinstance(value, str) and (len(value) > MOST or "\0" in value):
            raise MessageError(f"The {field} of an order is no text of at most {MOST} characters.")
        if isinstance(value, int) and not 0 <= value <= MOST_PORT:
            raise MessageError(f"The {field} of an order is not from 0 to {MOST_PORT}.")


def bundled(answers: Sequence[AnyMessage | None]) -> MessageBatch:
    """Answers to the parts of a bundle, in their order."""
    return MessageBatch(parts=tuple(msgspec.Raw(b"null" if one is None else encode(one)) for one in answers))


def unbundle(data: bytes) -> list[bytes] | None:
    """The messages in a bundle, None for any other bytes."""
    if not data.startswith(_BUNDLE_HEAD):
        return None
    try:
        bundle = decode(data)
    except MessageError:
        return None
    return [bytes(part) for part in bundle.parts] if isinstance(bundle, MessageBatch) else None


_BUNDLE_HEAD = encode(MessageBatch(parts=()))[:16]
