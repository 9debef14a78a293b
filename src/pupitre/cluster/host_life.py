"""The next step in the life of a host, from the difference between what is wanted of it and what is seen.

A host that is to leave drains: it gets no new desktops, its users are warned (`Desktop.until`), then its
desktops are shut down; when none is left, it is unregistered, or told to shut its machine down. One that is
to be ready is woken. Pure decisions: the shell in `hosts` asks again after every report, and after a while.
"""

from dataclasses import dataclass, replace

from pupitre.cluster.decisions import observe, stop
from pupitre.cluster.host_commands import AT_ONCE, HEARD, READY, SHUT_DOWN, UNREGISTERED, fault_of, open_entries
from pupitre.domain.command import BootUpHost, CommandState, Fault
from pupitre.domain.desktop import DesktopEvent, DesktopState
from pupitre.domain.host import HOST_LIFE, Host, HostEvent, HostState
from pupitre.store.cluster_rows import HostEntry
from pupitre.store.transaction import Transaction

WAKE_EVERY = 3.0
"""Seconds between two packets to a sleeping machine."""
LOOK_AGAIN = 5.0
"""Seconds until a step that has had no visible effect is taken again."""
BEFORE_DEADLINE_MS = 2000
"""A command that cannot succeed any more ends with its reason this long before it would time out."""


@dataclass(frozen=True, slots=True)
class Limits:
    """In ms: how long a host may be silent before it is given up, and one without a MAC may take to answer."""

    give_up: int
    answer: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done now, once what was decided is on disk; ``again`` in seconds."""

    again: float | None = None
    wake: frozenset[str] = frozenset()
    mac: str | None = None
    describe: bool = False
    power_off: bool = False
    at_once: bool = False
    removed: bool = False


def settle(transaction: Transaction, name: str, *, now: int, limits: Limits, is_leaving: bool) -> Step:
    """Decide and write the next step. Needs the host's desktops and commands about hosts.

    ``is_leaving``: the host has taken the order to shut down, and was heard no more since.
    """
    held = transaction.hosts.get(name)
    if held is None:
        return Step()
    if held.wanted == READY:
        return _towards_ready(transaction, held, now=now, limits=limits)
    if (late := _hopeless(transaction, held, now)) is not None:
        return late
    if held.host.state in HEARD:
        return _drain(transaction, held, now=now)
    if held.host.state is HostState.SHUT_DOWN:
        return _leave(transaction, held)
    if held.wanted == UNREGISTERED and held.drained_by == AT_ONCE:
        return leave_unheard(transaction, held, now=now)
    if is_leaving:
        farewell(transaction, name, now=now, reason="It went down without a farewell.")
        return _leave(transaction, transaction.hosts[name])
    return _look_before_deadline(transaction, held, now, LOOK_AGAIN)


def farewell(transaction: Transaction, name: str, *, now: int, reason: str | None = None) -> None:
    """The host shuts down in order, and has nothing left: who wanted that has it, even if it is back at once."""
    held = transaction.hosts.get(name)
    if held is None:
        return
    give_up_desktops(transaction, held.host, now=now)
    _advance(transaction, held, HostEvent.SHUT_DOWN, now=now, reason=reason)
    if held.wanted == SHUT_DOWN:
        _leave(transaction, transaction.hosts[name])


def leave_unheard(transaction: Transaction, held: HostEntry, *, now: int) -> Step:
    """A host that does not answer, or that nobody believes, leaves the cluster, and its desktops with it."""
    give_up_desktops(transaction, held.host, now=now)
    return _leave(transaction, held)


def give_up_desktops(transaction: Transaction, host: Host, *, now: int) -> None:
    """Nothing is known of them any more, nor will be: they end here."""
    reason = f"{host.title} left the cluster with it."
    for placed in transaction.desktops_on(host.name):
        if placed.wanted is not DesktopState.GONE:
            observe(transaction, placed, DesktopEvent.FAIL, reason=reason, now=now)
    for placed in transaction.desktops_on(host.name):
        observe(transaction, placed, DesktopEvent.END, reason=placed.seen.reason or reason, now=now)


# Towards ready


def _towards_ready(transaction: Transaction, held: HostEntry, *, now: int, limits: Limits) -> Step:
    host, waking = (
        held.host,
        [entry for entry in open_entries(transaction, held.host.name, READY) if isinstance(entry.order, BootUpHost)],
    )
    if host.state in HEARD:
        if host.state is HostState.DRAINING:
            _advance(transaction, held, HostEvent.REPORT, now=now)
        for placed in transaction.desktops_on(host.name):
            if placed.seen.until is not None and placed.wanted is not DesktopState.GONE:
                transaction.put_desktop(replace(placed, seen=replace(placed.seen, until=None, reason=None)))
        for entry in waking:
            transaction.finish(entry.id, CommandState.SUCCEEDED)
        return Step()
    if not waking:
        return _silent(transaction, held, now=now, limits=limits)
    if HOST_LIFE.allows(host.state, HostEvent.WAKE):
        reason = "it is being woken" if host.mac else "it has to be switched on by hand"
        _advance(transaction, held, HostEvent.WAKE, now=now, reason=reason)
        host = transaction.hosts[host.name].host
    waited = now - host.since
    give_up_at = min(entry.deadline for entry in waking) - BEFORE_DEADLINE_MS
    if now >= give_up_at or (host.mac is None and waited >= limits.answer):
        reason = f"{host.title} has not answered within {waited // 1000} s of being woken. Look at the machine."
        if host.mac is None:
            reason = (
                f"{host.title} does not answer, and no MAC address is known to wake it by."
                " Switch it on by hand, or give its MAC address on the Hosts page."
            )
        for entry in waking:
            transaction.finish(entry.id, CommandState.FAILED, Fault(fault_of(entry.order).code, reason))
        _advance(transaction, transaction.hosts[host.name], HostEvent.GIVE_UP, now=now, reason="it did not wake up")
        return Step()
    again = min(WAKE_EVERY, max(0.1, (give_up_at - now) / 1000))
    return Step(again=again, mac=host.mac, describe=True)


def _silent(transaction: Transaction, held: HostEntry, *, now: int, limits: Limits) -> Step:
    """Given up after a while; nobody asks it any more, but when it reports it is there again."""
    if not HOST_LIFE.allows(held.host.state, HostEvent.GIVE_UP):
        return Step()
    left = held.host.since + limits.give_up - now
    if left > 0:
        return Step(again=left / 1000)
    _advance(transaction, held, HostEvent.GIVE_UP, now=now, reason="it has not answered for a long time")
    return Step()


# Towards the end


def _drain(transaction: Transaction, held: HostEntry, *, now: int) -> Step:
    if held.host.state is not HostState.DRAINING:
        reason = "it leaves the cluster" if held.wanted == UNREGISTERED else "it is to be shut down"
        _advance(transaction, held, HostEvent.DRAIN, now=now, reason=reason)
    desktops = transaction.desktops_on(held.host.name)
    drained_by = held.drained_by or AT_ONCE
    if desktops and now < drained_by:
        why = f"{held.host.title} is shut down for maintenance; save your work."
        for placed in desktops:
            if placed.seen.until != drained_by and placed.wanted is not DesktopState.GONE:
                warned = replace(placed.seen, until=drained_by, reason=why)
                transaction.put_desktop(replace(placed, seen=warned))
        return _look_before_deadline(transaction, held, now, (drained_by - now) / 1000)
    if desktops:
        why = f"{held.host.title} was shut down for maintenance."
        until = None if drained_by == AT_ONCE else drained_by
        for placed in desktops:
            if placed.wanted is not DesktopState.GONE or (until is None and placed.seen.until):
                stop(transaction, placed, now=now, reason=why, until=until)
        step = _look_before_deadline(transaction, held, now, LOOK_AGAIN)
        return replace(step, wake=frozenset(placed.seen.id for placed in desktops))
    if held.wanted == UNREGISTERED:
        return _leave(transaction, held)
    step = _look_before_deadline(transaction, held, now, LOOK_AGAIN)
    return replace(step, power_off=True, at_once=drained_by == AT_ONCE)


def _leave(transaction: Transaction, held: HostEntry) -> Step:
    """It is where it was wanted."""
    for entry in open_entries(transaction, held.host.name, held.wanted):
        transaction.finish(entry.id, CommandState.SUCCEEDED)
    if held.wanted != UNREGISTERED:
        return Step()
    transaction.remove_host(held.host.name)
    return Step(removed=True)


def _hopeless(transaction: Transaction, held: HostEntry, now: int) -> Step | None:
    """Before its commands would time out, a host that does not leave goes on as before, and they say why."""
    waiting = open_entries(transaction, held.host.name, held.wanted)
    if not waiting or now < max(entry.deadline for entry in waiting) - BEFORE_DEADLINE_MS:
        return None
    left = len(transaction.desktops_on(held.host.name))
    why = f"{left} of its desktops have not ended" if held.host.state in HEARD else "it does not answer"
    if not left and held.host.state in HEARD:
        why = "it has not said that it shuts down"
    reason = f"{held.host.title} stays as it was: {why}. Try it again, or at once."
    for entry in waiting:
        transaction.finish(entry.id, CommandState.FAILED, Fault(fault_of(entry.order).code, reason))
    transaction.put_host(held.host, wanted=READY, drained_by=None)
    return Step(again=0)


def _look_before_deadline(transaction: Transaction, held: HostEntry, now: int, seconds: float) -> Step:
    deadlines = [entry.deadline for entry in open_entries(transaction, held.host.name, held.wanted)]
    if deadlines:
        seconds = min(seconds, (max(deadlines) - BEFORE_DEADLINE_MS - now) / 1000)
    return Step(again=max(0.05, seconds))


def _advance(
    transaction: Transaction, held: HostEntry, event: HostEvent, *, now: int, reason: str | None = None
) -> None:
    state = HOST_LIFE.next(held.host.state, event)
    since = held.host.since if state is held.host.state else now
    transaction.put_host(replace(held.host, state=state, since=since, reason=reason))
