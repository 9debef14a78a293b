"""Hosts that know more than the cluster's database, as after a restored backup: what is doubted, what is taken over.

One host's mere word sets that host aside. The cluster as a whole waits for an administrator when two say so, or one
proves it by an order that the cluster's own key signed. Taken over is what that key has signed for the very host;
every other guest there is named, and left as it is.
"""

from collections.abc import Callable
from dataclasses import replace
from enum import Enum

from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.order_proof import Ordered
from pupitre.domain.warning import HostWarning, WarningCode, warn
from pupitre.store.cluster_rows import Doubt, Placed, UnknownGuest
from pupitre.store.restore_conflicts import is_cluster_in_doubt
from pupitre.store.transaction import Transaction
from pupitre.wire.messages import Report, Sighting

WAITS = "waits for an administrator's word: the cluster's database is from the past (pupitre cluster confirm)"
SET_ASIDE = "it says that it knows more than the cluster's database; nothing starts there (pupitre cluster confirm)"
ENDING = frozenset({DesktopState.STOPPING, DesktopState.FAILED, DesktopState.GONE})

Prove = Callable[[str], Ordered | None]
"""What the cluster's key has signed for the host of a report, by its proof; None where it has not."""


class Stance(Enum):
    """How a report is taken: as always; from a host that knows more than this database, and what of that to do.

    DOUBT: nothing that is unknown or missing has any consequence. ADOPT: what the cluster's key has signed is taken
    over as it is, and what is missing is gone.
    """

    USUAL = "usual"
    DOUBT = "doubt"
    ADOPT = "adopt"


def judge(
    transaction: Transaction,
    report: Report,
    prove: Prove,
    *,
    is_new: bool,
    now: int,
    known: bool,
    epoch: int,
    confirmed: int,
) -> tuple[Stance, int]:
    """How to take this report, and since when its host is known to know more than this database.

    ``known``: what it has heard of is all here. Of epochs before ``confirmed`` an administrator has spoken; ``epoch``
    is the present one.
    """
    host, heard = report.host, report.heard
    if heard and not known:
        ordered = prove(heard.proof)
        is_proven = ordered is not None and (ordered.epoch, ordered.sequence) == (heard.epoch, heard.sequence)
        doubt = transaction.doubts.get(host)
        if doubt is None:
            if is_new:  # whoever registers a host has said that it belongs here
                transaction.confirmed_before = max(transaction.confirmed_before, min(heard.epoch + 1, epoch))
            doubt = Doubt(now, is_new or heard.epoch < confirmed, is_proven)
            transaction.doubts[host] = doubt
            if not doubt.confirmed:
                shown = "shows an order of the cluster" if is_proven else "says that it has heard of changes"
                detail = f"{host} {shown} that is not in the cluster's database: is it from the past?"
                transaction.note("database_restored", host, detail, now=now)
        elif is_proven and not doubt.proven:
            transaction.doubts[host] = replace(doubt, proven=True)
    mine = transaction.doubts.get(host)
    if is_cluster_in_doubt(transaction.doubts.values()):
        return Stance.DOUBT, 0
    if mine is None:
        return Stance.USUAL, 0
    if not mine.confirmed or not report.full:
        return Stance.DOUBT, 0
    del transaction.doubts[host]
    return Stance.ADOPT, mine.since


def meet_unknown(
    transaction: Transaction, host: str, sighting: Sighting, stance: Stance, prove: Prove, *, now: int
) -> bool:
    """A guest that no row knows is taken over, or named and left; False where it is nobody's and may go."""
    key = (host, sighting.desktop)
    if stance is Stance.USUAL:
        return key in transaction.unknown
    seen = transaction.unknown.get(key)
    if seen and stance is Stance.DOUBT and seen.boot == sighting.boot:
        transaction.unknown[key] = replace(seen, state=sighting.state)
        return True  # its proof was looked at before
    ordered = prove(sighting.proof)
    if ordered is None or (ordered.desktop, ordered.boot) != (sighting.desktop, sighting.boot) or not ordered.image:
        ordered = None
    if ordered and stance is Stance.ADOPT and _fits(transaction, host, ordered):
        _adopt(transaction, host, sighting, ordered, now=now)
        transaction.unknown.pop(key, None)
        return True
    if ordered is None and stance is Stance.ADOPT:
        detail = f"{host} has it, this database had not, and the cluster's key has not signed it: it is left as it is."
        transaction.note("guest_left", sighting.desktop, detail, now=now)
    transaction.unknown[key] = UnknownGuest(
        host,
        sighting.desktop,
        sighting.boot,
        sighting.state,
        owner=ordered.owner if ordered else sighting.owner,
        image=ordered.image if ordered else sighting.image,
        proven=ordered is not None,
    )
    return True


def forget_unknown(transaction: Transaction, report: Report) -> None:
    """Guests that are gone need not be left as they are any more."""
    gone = {one.desktop for one in report.desktops if one.state is DesktopState.GONE}
    named = {one.desktop for one in report.desktops}
    for host, desktop in list(transaction.unknown):
        if host == report.host and (desktop in gone or (report.full and desktop not in named)):
            del transaction.unknown[host, desktop]


def doubt_warnings(transaction: Transaction, host: str) -> tuple[HostWarning, ...]:
    """What people are told of the host's guests that the cluster does not know."""
    if host in transaction.doubts:
        return (warn(WarningCode.KNOWS_MORE),)
    left = sum(1 for of, _ in transaction.unknown if of == host)
    return (warn(WarningCode.GUESTS_LEFT, left),) if left else ()


def _fits(transaction: Transaction, host: str, ordered: Ordered) -> bool:
    """Whether the host has room for it by the books."""
    entry = transaction.hosts.get(host)
    most = entry.host.facts.memory_mib if entry and entry.host.facts else 0
    return entry is not None and entry.used_memory_mib + ordered.memory_mib <= most


def _adopt(transaction: Transaction, host: str, sighting: Sighting, ordered: Ordered, *, now: int) -> None:
    """A desktop that this database has lost goes on as its owner's, as it was ordered."""
    desktop = Desktop(
        id=ordered.desktop,
        owner=ordered.owner,
        image=ordered.image,
        host=host,
        state=sighting.state,
        since=now,
        created=now,
        reason="It was taken over as it ran.",
        boot=ordered.boot,
    )
    wanted = DesktopState.GONE if sighting.state in ENDING else DesktopState.RUNNING
    memory = ordered.memory_mib + transaction.overhead(host, ordered.image)
    transaction.put_desktop(Placed(desktop, wanted, memory, ordered.vcpus))
    detail = f"{host} has it, this database had not; taken over for {desktop.owner}."
    transaction.note("guest_adopted", desktop.id, detail, now=now)
