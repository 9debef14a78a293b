"""The next step in the life of a host, from the difference between what is wanted of it and what is seen.

A host that is to leave drains: it gets no new desktops, its users are warned (`Desktop.until`), then its
desktops are shut down; when none is left, it is unregistered, or told to shut its machine down. One that is
to be ready is woken. Pure decisions: the shell in `hosts` asks again after every report, and after a while.
"""

from dataclasses import dataclass, replace

from pupitre.domain.command import BootUpHost, CommandState, Fault
from pupitre.domain.command_kinds import fault_of
from pupitre.domain.desktop import DesktopEvent, DesktopState
from pupitre.domain.host import HOST_LIFE, Host, HostEvent, HostState
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import observe, stop
from pupitre.scheduler.host_commands import ANSWERING, AT_ONCE, READY, SHUT_DOWN, UNREGISTERED, open_commands
from pupitre.scheduler.state import RegisteredHost
from pupitre.timings import BEFORE_DEADLINE_MS, HOST_RECHECK, WAKE_EVERY


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in ms: how long a host may be silent before it is given up, and one without a MAC may take to answer."""

    give_up: int
    answer: int


@dataclass(frozen=True, slots=True)
class Step:
    """Step to take once the decision is on disk; ``again`` in seconds."""

    again: float | None = None
    wake: frozenset[str] = frozenset()
    mac: str | None = None
    describe: bool = False
    power_off: bool = False
    at_once: bool = False
    removed: bool = False


def settle(changes: Changes, name: str, *, now: int, limits: Limits, is_leaving: bool) -> Step:
    """Decide and write the next step. Needs the host's desktops and commands about hosts.

    ``is_leaving``: the host has taken the order to shut down, and was heard no more since.
    """
    registered = changes.hosts.get(name)
    if registered is None:
        return Step()
    if registered.wanted == READY:
        return _towards_ready(changes, registered, now=now, limits=limits)
    if (late := _fail_if_deadline_near(changes, registered, now)) is not None:
        return late
    if registered.host.state in ANSWERING:
        return _drain(changes, registered, now=now)
    if registered.host.state is HostState.SHUT_DOWN:
        return _leave(changes, registered)
    if registered.wanted == UNREGISTERED and registered.drained_by == AT_ONCE:
        return leave_unheard(changes, registered, now=now)
    if is_leaving:
        record_shutdown(changes, name, now=now, reason="It went down without a notice.")
        return _leave(changes, changes.hosts[name])
    return _recheck_before_deadline(changes, registered, now, HOST_RECHECK)


def record_shutdown(changes: Changes, name: str, *, now: int, reason: str | None = None) -> None:
    """The host shuts down in order, and has nothing left: who wanted that has it, even if it is back at once."""
    registered = changes.hosts.get(name)
    if registered is None:
        return
    give_up_desktops(changes, registered.host, now=now)
    _advance(changes, registered, HostEvent.SHUT_DOWN, now=now, reason=reason)
    if registered.wanted == SHUT_DOWN:
        _leave(changes, changes.hosts[name])


def leave_unheard(changes: Changes, registered: RegisteredHost, *, now: int) -> Step:
    """A host that does not answer, or that nobody believes, leaves the cluster, and its desktops with it."""
    give_up_desktops(changes, registered.host, now=now)
    return _leave(changes, registered)


def give_up_desktops(changes: Changes, host: Host, *, now: int) -> None:
    """Nothing is known of them any more, nor will be: they end here."""
    reason = f"{host.title} left the cluster with it."
    for placed in changes.desktops_on(host.name):
        if placed.wanted is not DesktopState.GONE:
            observe(changes, placed, DesktopEvent.FAIL, reason=reason, now=now)
    for placed in changes.desktops_on(host.name):
        observe(changes, placed, DesktopEvent.END, reason=placed.seen.reason or reason, now=now)


# Towards ready


def _towards_ready(changes: Changes, registered: RegisteredHost, *, now: int, limits: Limits) -> Step:
    host = registered.host
    waking = [one for one in open_commands(changes, host.name, READY) if isinstance(one.order, BootUpHost)]
    if host.state in ANSWERING:
        if host.state is HostState.DRAINING:
            _advance(changes, registered, HostEvent.REPORT, now=now)
        for placed in changes.desktops_on(host.name):
            if placed.seen.until is not None and placed.wanted is not DesktopState.GONE:
                changes.put_desktop(replace(placed, seen=replace(placed.seen, until=None, reason=None)))
        for command in waking:
            changes.finish(command.id, CommandState.SUCCEEDED)
        return Step()
    if not waking:
        return _silent(changes, registered, now=now, limits=limits)
    if HOST_LIFE.allows(host.state, HostEvent.WAKE):
        reason = "it is being woken" if host.mac else "it has to be switched on by hand"
        _advance(changes, registered, HostEvent.WAKE, now=now, reason=reason)
        host = changes.hosts[host.name].host
    waited = now - host.since
    give_up_at = min(command.deadline for command in waking) - BEFORE_DEADLINE_MS
    if now >= give_up_at or (host.mac is None and waited >= limits.answer):
        reason = f"{host.title} has not answered within {waited // 1000} s of being woken. Look at the machine."
        if host.mac is None:
            reason = (
                f"{host.title} does not answer, and no MAC address is known to wake it by."
                " Switch it on by hand, or give its MAC address on the Hosts page."
            )
        for command in waking:
            changes.finish(command.id, CommandState.FAILED, Fault(fault_of(command.order).code, reason))
        _advance(changes, changes.hosts[host.name], HostEvent.GIVE_UP, now=now, reason="it did not wake up")
        return Step()
    again = min(WAKE_EVERY, max(0.1, (give_up_at - now) / 1000))
    return Step(again=again, mac=host.mac, describe=True)


def _silent(changes: Changes, registered: RegisteredHost, *, now: int, limits: Limits) -> Step:
    """Given up after a while; nobody asks it any more, but when it reports it is there again."""
    if not HOST_LIFE.allows(registered.host.state, HostEvent.GIVE_UP):
        return Step()
    left = registered.host.since + limits.give_up - now
    if left > 0:
        return Step(again=left / 1000)
    _advance(changes, registered, HostEvent.GIVE_UP, now=now, reason="it has not answered for a long time")
    return Step()


# Towards the end


def _drain(changes: Changes, registered: RegisteredHost, *, now: int) -> Step:
    if registered.host.state is not HostState.DRAINING:
        reason = "it leaves the cluster" if registered.wanted == UNREGISTERED else "it is to be shut down"
        _advance(changes, registered, HostEvent.DRAIN, now=now, reason=reason)
    desktops = changes.desktops_on(registered.host.name)
    drained_by = registered.drained_by or AT_ONCE
    if desktops and now < drained_by:
        why = f"{registered.host.title} is shut down for maintenance; save your work."
        for placed in desktops:
            if placed.seen.until != drained_by and placed.wanted is not DesktopState.GONE:
                warned = replace(placed.seen, until=drained_by, reason=why)
                changes.put_desktop(replace(placed, seen=warned))
        return _recheck_before_deadline(changes, registered, now, (drained_by - now) / 1000)
    if desktops:
        why = f"{registered.host.title} was shut down for maintenance."
        until = None if drained_by == AT_ONCE else drained_by
        for placed in desktops:
            if placed.wanted is not DesktopState.GONE or (until is None and placed.seen.until):
                stop(changes, placed, now=now, reason=why, until=until)
        step = _recheck_before_deadline(changes, registered, now, HOST_RECHECK)
        return replace(step, wake=frozenset(placed.seen.id for placed in desktops))
    if registered.wanted == UNREGISTERED:
        return _leave(changes, registered)
    step = _recheck_before_deadline(changes, registered, now, HOST_RECHECK)
    return replace(step, power_off=True, at_once=drained_by == AT_ONCE)


def _leave(changes: Changes, registered: RegisteredHost) -> Step:
    """It is where it was wanted."""
    for command in open_commands(changes, registered.host.name, registered.wanted):
        changes.finish(command.id, CommandState.SUCCEEDED)
    if registered.wanted != UNREGISTERED:
        return Step()
    changes.remove_host(registered.host.name)
    return Step(removed=True)


def _fail_if_deadline_near(changes: Changes, registered: RegisteredHost, now: int) -> Step | None:
    """Fail its commands before they time out: a host that does not leave goes on as before, and they say why."""
    waiting = open_commands(changes, registered.host.name, registered.wanted)
    if not waiting or now < max(command.deadline for command in waiting) - BEFORE_DEADLINE_MS:
        return None
    left = len(changes.desktops_on(registered.host.name))
    why = f"{left} of its desktops have not ended" if registered.host.state in ANSWERING else "it does not answer"
    if not left and registered.host.state in ANSWERING:
        why = "it has not said that it shuts down"
    reason = f"{registered.host.title} stays as it was: {why}. Try it again, or at once."
    for command in waiting:
        changes.finish(command.id, CommandState.FAILED, Fault(fault_of(command.order).code, reason))
    changes.put_host(registered.host, wanted=READY, drained_by=None)
    return Step(again=0)


def _recheck_before_deadline(changes: Changes, registered: RegisteredHost, now: int, seconds: float) -> Step:
    deadlines = [command.deadline for command in open_commands(changes, registered.host.name, registered.wanted)]
    if deadlines:
        seconds = min(seconds, (max(deadlines) - BEFORE_DEADLINE_MS - now) / 1000)
    return Step(again=max(0.05, seconds))


def _advance(
    changes: Changes, registered: RegisteredHost, event: HostEvent, *, now: int, reason: str | None = None
) -> None:
    state = HOST_LIFE.next(registered.host.state, event)
    since = registered.host.since if state is registered.host.state else now
    changes.put_host(replace(registered.host, state=state, since=since, reason=reason))
