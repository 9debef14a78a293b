"""Host session: what the cluster knows of one host's process, from what that process has said.

In memory alone: after a start each host says anew what is there. A host process has a name for each of its runs and
numbers its reports within a run.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from pupitre.cluster.clocks import ClockEstimate
from pupitre.cluster.report_limit import AuditLimit
from pupitre.domain.bounds import MOST_GUESTS
from pupitre.domain.report import LastKnownPosition
from pupitre.domain.state_machine import Machine

RUNS = 16
"""Earlier runs of a host whose messages may still come late."""


class SessionState(StrEnum):
    """State of a session. SILENT: nothing is known of the host's guests, so it takes no orders."""

    SILENT = "silent"
    DESCRIBED = "described"
    LEAVING = "leaving"


class SessionEvent(StrEnum):
    """Event of a session. POWER_OFF: the host has taken the order to shut down; STAY: that is not wanted any more."""

    DESCRIBE = "describe"
    POWER_OFF = "power_off"
    STAY = "stay"


_S, _E = SessionState, SessionEvent
SESSION_LIFE: Machine[SessionState, SessionEvent] = Machine(
    name="host session",
    initial=_S.SILENT,
    table={
        _S.SILENT: {_E.DESCRIBE: _S.DESCRIBED, _E.STAY: _S.SILENT},
        _S.DESCRIBED: {_E.DESCRIBE: _S.DESCRIBED, _E.POWER_OFF: _S.LEAVING, _E.STAY: _S.DESCRIBED},
        _S.LEAVING: {_E.DESCRIBE: _S.LEAVING, _E.POWER_OFF: _S.LEAVING, _E.STAY: _S.DESCRIBED},
    },
)


@dataclass(frozen=True, slots=True)
class ReportNumber:
    """Number of a report within a run of the host process."""

    run: str = ""
    number: int = 0


@dataclass(slots=True)
class HostSession:
    """``heard`` is when the host said something last (loop time); None: nobody waits for it.

    ``applied`` is the report up to which all have been applied, ``latest`` the last one that was written.
    ``orphans`` are guests of this host that the audit log has been told of. ``reconciled`` is the position that an
    administrator has settled.
    """

    name: str
    state: SessionState = SESSION_LIFE.initial
    heard: float | None = None
    applied: ReportNumber = ReportNumber()
    latest: ReportNumber = ReportNumber()
    orphans: frozenset[str] = frozenset()
    reconciled: LastKnownPosition | None = None
    clock: ClockEstimate = field(default_factory=ClockEstimate)
    audit: AuditLimit = field(default_factory=AuditLimit)
    _runs: deque[str] = field(default_factory=lambda: deque(maxlen=RUNS))
    _replaced: deque[str] = field(default_factory=lambda: deque(maxlen=RUNS))
    _departed: frozenset[str] = frozenset()

    def advance(self, event: SessionEvent) -> None:
        """Raises `ForbiddenTransition`."""
        self.state = SESSION_LIFE.next(self.state, event)

    @property
    def takes_orders(self) -> bool:
        """Whether it is known what runs there."""
        return self.state is not SessionState.SILENT

    # The order of reports

    def is_new(self, report: ReportNumber) -> bool:
        """Whether reports up to this one have not all been applied."""
        return self.applied.run != report.run or report.number > self.applied.number

    def follows(self, report: ReportNumber) -> bool:
        """Whether every report before this one has been applied."""
        return not self.is_new(ReportNumber(report.run, report.number - 1))

    def is_stale(self, report: ReportNumber) -> bool:
        """Whether one that was made later has been written already, by this run of the host or by the next.

        Even where reports between the two are still to come: an earlier one says of what the later one
        named, or of what has begun since, that it is not there.
        """
        overtaken = any(report.run == one.run and report.number < one.number for one in (self.applied, self.latest))
        return overtaken or report.run in self._replaced

    def mark_written(self, report: ReportNumber) -> None:
        """It is being written; what was made before it is stale from here on."""
        if self.latest.run not in (report.run, ""):
            self._replaced.append(self.latest.run)
        number = max(self.latest.number, report.number) if self.latest.run == report.run else report.number
        self.latest = ReportNumber(report.run, number)

    def mark_applied(self, report: ReportNumber) -> None:
        """Every report up to this one is applied."""
        self.applied = report

    def forget_reports(self) -> None:
        """Treat the next report as new."""
        self.applied = ReportNumber()

    # Runs that have ended

    def add_run(self, run: str) -> None:
        """This run has been heard."""
        if run not in self._runs:
            self._runs.append(run)

    def depart(self, run: str) -> None:
        """It has shut down in order: what this run or an earlier one still says does not count."""
        self._departed = frozenset([*self._runs, run])

    def rejoin(self) -> None:
        """It is registered again: each of its runs counts."""
        self._departed = frozenset()

    def has_departed(self, run: str) -> bool:
        return run in self._departed

    # Guests that belong to no desktop

    def note_orphans(self, orphans: frozenset[str], gone: frozenset[str]) -> None:
        """The audit log has been told of ``orphans``; nothing is left of ``gone``."""
        known = (self.orphans | orphans) - gone
        self.orphans = known if len(known) <= MOST_GUESTS else orphans

    def forget(self) -> None:
        """It is no longer registered. Runs that have ended stay known: their messages may still come."""
        if SESSION_LIFE.allows(self.state, SessionEvent.STAY):
            self.advance(SessionEvent.STAY)
        self.heard = None
        self.forget_reports()
        self.clock, self.audit = ClockEstimate(), AuditLimit()
