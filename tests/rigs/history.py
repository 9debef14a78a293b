"""Check of a history: after any fault, nothing may be lost, doubled, left over or untrue.

`violations` is a pure function of `Evidence`, and says in sentences which of these does not hold:

I1  every command that was taken has exactly one final outcome;
I2  no desktop runs twice, on two hosts or on one;
I3  no guest, disk or record of a host without a desktop that owns it, and no desktop without them;
I4  what the website shows is what the cluster has seen, and that is what runs;
I5  what is counted as used is the sum of what is placed;
I6  nobody was told of something done that is not done.

`SimulatedGuestLog`s, processes and disks are what is; databases and journals are what is believed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pupitre.domain.command import FINAL_STATES, CommandKind, CommandState, outcome_word
from pupitre.domain.desktop import DesktopState

Sort = Literal["lost", "doubled", "orphan", "untrue"]

_D, _C = DesktopState, CommandState
_STEADY = frozenset({_D.RUNNING, _D.FAILED, _D.GONE})


@dataclass(frozen=True, slots=True)
class Violation:
    """``sort``: something taken has no outcome; twice what may be once; left over or missing; said, but not so."""

    sort: Sort
    sentence: str

    def __str__(self) -> str:
        return f"{self.sort}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class CommandSeen:
    """A row of ``commands``. ``gave_up``: its end was written without the cluster's word."""

    id: str
    kind: CommandKind
    desktop: str | None
    state: CommandState
    fault: str | None = None
    late: CommandState | None = None
    abandon: bool = False

    @property
    def outcome(self) -> str:
        return outcome_word(self.kind, self.state, self.fault)

    @property
    def gave_up(self) -> bool:
        return self.state is _C.TIMED_OUT or self.fault == "CONNECTION_ERROR"


@dataclass(frozen=True, slots=True)
class EntrySeen:
    """A row of the cluster's journal."""

    outcome: CommandState | None
    reported: bool


@dataclass(frozen=True, slots=True)
class PlacedSeen:
    """A desktop as the cluster keeps it."""

    host: str | None
    state: DesktopState
    wanted: DesktopState
    boot: int = 1
    reason: str | None = None
    memory_mib: int = 0
    vcpus: int = 0


@dataclass(frozen=True, slots=True)
class ShownSeen:
    """A desktop as the website shows it."""

    host: str | None
    state: DesktopState
    boot: int = 1


@dataclass(frozen=True, slots=True)
class HostSeen:
    """State of a host. ``guests`` has a desktop as often as it runs there, ``ran`` has all that ever did.

    ``overlays`` are its disks (None where guests have none), and ``records`` its journal's (None where it
    was not read): by desktop, what is wanted.
    """

    guests: tuple[str, ...] = ()
    overlays: frozenset[str] | None = frozenset()
    records: Mapping[str, DesktopState] | None = None
    ran: frozenset[str] | None = None
    restarted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known. ``answered`` and ``told`` are a client's own notes: ids, and final states it was shown.

    ``lasting``: no guest ends or fails by itself, and no host loses any; so one that was booted runs until destroyed.
    """

    commands: Mapping[str, CommandSeen] = field(default_factory=dict)
    audit: tuple[tuple[str, str], ...] = ()
    journal: Mapping[str, EntrySeen] = field(default_factory=dict)
    placed: Mapping[str, PlacedSeen] = field(default_factory=dict)
    shown: Mapping[str, ShownSeen] = field(default_factory=dict)
    used: Mapping[str, tuple[int, int]] | None = None
    hosts: Mapping[str, HostSeen] = field(default_factory=dict)
    answered: frozenset[str] = frozenset()
    told: Mapping[str, CommandState] = field(default_factory=dict)
    lasting: bool = False


def violations(seen: Evidence) -> list[Violation]:
    """Empty when all is as it must be, once everything has had the time to settle."""
    return [
        *_one_outcome(seen),
        *_outcomes_agree(seen),
        *_told(seen),
        *_never_twice(seen),
        *_owners(seen),
        *_same_everywhere(seen),
        *_intent(seen),
        *_sums(seen),
    ]


def _one_outcome(seen: Evidence) -> Iterator[Violation]:
    for taken in sorted(seen.answered - seen.commands.keys()):
        yield Violation("lost", f"The command {taken} was taken and has no row.")
    for command in seen.commands.values():
        if command.state not in FINAL_STATES:
            yield Violation("lost", f"The command {command.id} ({command.kind}) is still {command.state}.")
        if command.abandon:
            yield Violation("lost", f"The cluster has not been told that nobody waits for {command.id}.")
    yield from _audited(seen)


def _audited(seen: Evidence) -> Iterator[Violation]:
    """The audit log has one row for what was asked, one for how it ended, and one at most for what came late."""
    lines: dict[str, list[str]] = {}
    for named, outcome in seen.audit:
        lines.setdefault(named, []).append(outcome)
    for named, outcomes in lines.items():
        command = seen.commands.get(named)
        if command is None:
            yield Violation("orphan", f"The audit log knows a command {named}, and it has no row.")
            continue
        expected = ["", command.outcome] if command.outcome else [""]
        expected += [f"late {command.late}"] if command.late else []
        surplus, missing = Counter(outcomes) - Counter(expected), Counter(expected) - Counter(outcomes)
        for word in surplus.elements():
            yield Violation("doubled", f"The audit log says too much of {named}: {word or 'asked for'!r}.")
        for word in missing.elements():
            yield Violation("lost", f"The audit log does not say of {named}: {word or 'asked for'!r}.")
    for unsaid in sorted(seen.commands.keys() - lines.keys()):
        yield Violation("lost", f"The audit log does not know the command {unsaid}.")


def _outcomes_agree(seen: Evidence) -> Iterator[Violation]:
    """The website's word is the cluster's, but where the website had to give up."""
    for command in seen.commands.values():
        entry = seen.journal.get(command.id)
        if entry is None:
            if command.state is _C.SUCCEEDED:
                yield Violation("untrue", f"{command.id} has succeeded, and the cluster never heard of it.")
            continue
        if entry.outcome is None:
            yield Violation("lost", f"The cluster has no outcome for {command.id}, which has {command.state}.")
        elif not entry.reported:
            yield Violation("lost", f"The cluster's outcome of {command.id} has not been taken.")
        elif not command.gave_up and entry.outcome is not command.state:
            yield Violation("untrue", f"{command.id} has {command.state}, and the cluster says {entry.outcome}.")
    for unasked in sorted(seen.journal.keys() - seen.commands.keys()):
        yield Violation("orphan", f"The cluster has a command {unasked} that nobody gave.")


def _told(seen: Evidence) -> Iterator[Violation]:
    for command, state in seen.told.items():
        row = seen.commands.get(command)
        if row is not None and row.state is not state:
            yield Violation("untrue", f"A client was told that {command} has {state}, and it has {row.state}.")


def _never_twice(seen: Evidence) -> Iterator[Violation]:
    where: dict[str, list[str]] = {}
    for name, host in seen.hosts.items():
        for desktop in host.guests:
            where.setdefault(desktop, []).append(name)
        for desktop in host.restarted:
            yield Violation("doubled", f"{desktop} was started on {name} while it ran there.")
    for desktop, names in where.items():
        if len(names) > 1:
            yield Violation("doubled", f"{desktop} runs {len(names)} times: on {', '.join(names)}.")


def _owners(seen: Evidence) -> Iterator[Violation]:
    for name, host in seen.hosts.items():
        own = {desktop: row for desktop, row in seen.placed.items() if row.host == name and row.state is not _D.GONE}
        held = {"guest": host.guests, "disk": host.overlays, "record": host.records}
        for what, there in held.items():
            for desktop in sorted(set(there or ()) - own.keys()):
                row = seen.placed.get(desktop)
                known = f"which is {row.state} on {row.host}" if row else "which the cluster does not know"
                yield Violation("orphan", f"{name} has a {what} of {desktop}, {known}.")
        for desktop, row in own.items():
            if row.state is not _D.RUNNING:
                continue
            for what, there in held.items():
                if there is not None and desktop not in there:
                    yield Violation("orphan", f"{desktop} runs on {name}, and there is no {what} of it.")
    for desktop, row in seen.placed.items():
        if row.host is not None and row.state is not _D.GONE and row.host not in seen.hosts:
            yield Violation("orphan", f"{desktop} is on {row.host}, which is no host.")


def _same_everywhere(seen: Evidence) -> Iterator[Violation]:
    for desktop, row in seen.placed.items():
        if row.state not in _STEADY:
            yield Violation("lost", f"{desktop} is still {row.state} on {row.host} ({row.reason}).")
        shown = seen.shown.get(desktop)
        if shown is None:
            if row.state is not _D.GONE:
                yield Violation("untrue", f"{desktop} is {row.state}, and the website does not show it.")
        elif row.state is _D.GONE:
            if shown.state is not _D.GONE:
                yield Violation("untrue", f"{desktop} is gone, and the website shows it {shown.state}.")
        elif (shown.state, shown.host, shown.boot) != (row.state, row.host, row.boot):
            yield Violation(
                "untrue",
                f"{desktop} is {row.state} on {row.host} (boot {row.boot}), and the website shows it"
                f" {shown.state} on {shown.host} (boot {shown.boot}).",
            )
    for desktop, shown in seen.shown.items():
        if desktop not in seen.placed and shown.state is not _D.GONE:
            yield Violation("untrue", f"The website shows {desktop} {shown.state}, and there is no such desktop.")


def _intent(seen: Evidence) -> Iterator[Violation]:
    """A desktop is as the last accepted command wants it, or says why not."""
    boots: dict[str, CommandSeen] = {}
    destroyed: set[str] = set()
    for command in seen.commands.values():
        if command.kind is CommandKind.BOOT_DESKTOP and command.desktop:
            if command.desktop in boots:
                yield Violation("doubled", f"{command.desktop} was booted by two commands.")
            boots[command.desktop] = command
        # One that timed out has been accepted, and is carried out whenever it can be.
        elif command.kind is CommandKind.DESTROY_DESKTOP and command.desktop:
            entry = seen.journal.get(command.id)
            if entry is not None and entry.outcome is _C.SUCCEEDED:
                destroyed.add(command.desktop)
    running = {desktop for host in seen.hosts.values() for desktop in host.guests}
    ran = [host.ran for host in seen.hosts.values()]
    ever = None if None in ran else {desktop for known in ran if known is not None for desktop in known}
    for desktop in sorted(destroyed):
        row = seen.placed.get(desktop)
        if desktop in running or (row is not None and row.state is not _D.GONE):
            yield Violation("untrue", f"{desktop} was destroyed, and is {row.state if row else 'running'}.")
    for desktop, command in boots.items():
        row = seen.placed.get(desktop)
        if command.state is _C.SUCCEEDED:
            if ever is not None and desktop not in ever:
                yield Violation("untrue", f"{command.id} has succeeded, and {desktop} never ran.")
            if row is None:
                yield Violation("lost", f"{desktop} was booted, and the cluster does not know it.")
            elif row.state is not _D.RUNNING and desktop not in destroyed and (seen.lasting or not row.reason):
                why = row.reason or "nobody says why"
                yield Violation("lost", f"{desktop} was booted, nobody destroyed it, and it is {row.state}: {why}.")
        elif command.state in FINAL_STATES and desktop in running:
            yield Violation("untrue", f"{command.id} has {command.state}, and {desktop} runs.")
    for desktop in sorted(seen.placed.keys() - boots.keys()):
        yield Violation("orphan", f"There is a desktop {desktop} that no command booted.")


def _sums(seen: Evidence) -> Iterator[Violation]:
    if seen.used is None:
        return
    sums: dict[str, tuple[int, int]] = {}
    for row in seen.placed.values():
        if row.host is not None and row.state is not _D.GONE:
            memory, vcpus = sums.get(row.host, (0, 0))
            sums[row.host] = (memory + row.memory_mib, vcpus + row.vcpus)
    for host, used in seen.used.items():
        if used != (there := sums.get(host, (0, 0))):
            yield Violation("untrue", f"{host} counts {used} MiB and CPUs as used, and {there} are placed.")
