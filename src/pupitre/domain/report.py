"""Report: what a host says of itself, as plain values.

Each field is bounded by its type, so that whatever is decoded may be written and shown. `pupitre.wire.messages.Report`
is the same as a message.
"""

from typing import Annotated

import msgspec

from pupitre.domain.bounds import (
    MOST_FINDINGS,
    MOST_GUESTS,
    MOST_IMAGES,
    Key,
    Line,
    MemoryMib,
    Name,
    Number,
    Port,
    Small,
    Text,
    Time,
    Uuid,
    Vcpus,
    Word,
)
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostAct, HostFacts
from pupitre.domain.image import Image, ImageSpec
from pupitre.domain.order_proof import MOST_PROOF
from pupitre.domain.signed_manifest import SignedManifest
from pupitre.domain.warning import MOST_WARNINGS, HostWarning

MOST_SAID = 1_000_000
"""Characters of a text that the receiver cuts."""

HostName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Run = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[!-~]*\Z")]
"""A name of one life of a process."""
Proof = Annotated[str, msgspec.Meta(max_length=MOST_PROOF, pattern=r"^[A-Za-z0-9._-]*\Z")]
"""See `pupitre.domain.order_proof`."""
Said = Annotated[str, msgspec.Meta(max_length=MOST_SAID)]
"""Words of any length, which the receiver cuts."""


class DesktopReport(msgspec.Struct, frozen=True):
    """A desktop as its host sees it; GONE says that nothing is left of it.

    A full report also says whose it is and what it takes, for a cluster that has lost it, and shows the order's proof.
    """

    desktop: Uuid
    boot: Small
    state: DesktopState
    reason: Said | None = None
    owner: Key = ""
    image: Name = ""
    memory_mib: MemoryMib = 0
    vcpus: Vcpus = 0
    proof: Proof = ""


class LastKnownPosition(msgspec.Struct, frozen=True):
    """Position of a cluster process's changes when a host was last told of them, and the proof of that order."""

    epoch: Number
    sequence: Number
    proof: Proof = ""


class CopyReport(msgspec.Struct, frozen=True):
    """An image as its host has it; ``manifest`` is the digest of its manifest, where it is published.

    ``spec`` was what earlier versions went by.
    """

    image: Image
    spec: ImageSpec | None = None
    manifest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""


class HostFinding(msgspec.Struct, frozen=True):
    """Something that a host settled by itself, for the audit log; the same ``id`` is the same finding."""

    id: Uuid
    at: Time
    action: HostAct
    desktop: Line
    detail: Text


class LeftOut(msgspec.Struct, frozen=True):
    """Parts of one kind that cannot be used: how many there were, how many of them are left out, and why."""

    kind: Word
    there: Small
    unused: Small
    reason: Line


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """A report of a host.

    ``run`` names this life of the host process and ``number`` grows within it. A ``full`` report names every desktop
    and every image; what it does not name is not there. ``port`` is where its console server listens now,
    ``viewer_port`` where it lets native viewers in. ``heard`` is what it heard of the cluster process before this one,
    until a report is kept. ``manifests`` are those that the cluster may not know yet. ``warnings`` are what it finds
    wrong with itself; None says that they are as they were. ``left_out`` are parts that nobody could use.
    """

    host: HostName
    run: Run
    number: Number
    full: bool
    port: Port
    viewer_port: Port | None = None
    facts: HostFacts | None = None
    desktops: Annotated[tuple[DesktopReport, ...], msgspec.Meta(max_length=MOST_GUESTS)] = ()
    copies: Annotated[tuple[CopyReport, ...], msgspec.Meta(max_length=MOST_IMAGES)] | None = None
    findings: Annotated[tuple[HostFinding, ...], msgspec.Meta(max_length=MOST_FINDINGS)] = ()
    heard: LastKnownPosition | None = None
    warnings: Annotated[tuple[HostWarning, ...], msgspec.Meta(max_length=MOST_WARNINGS)] | None = None
    manifests: Annotated[tuple[SignedManifest, ...], msgspec.Meta(max_length=MOST_IMAGES)] = ()
    left_out: Annotated[tuple[LeftOut, ...], msgspec.Meta(max_length=8)] = ()
