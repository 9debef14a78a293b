"""The cluster's side of its hosts: what they report is written, what is wanted of them is done.

One worker for each host asks `host_life` for the next step and takes it; it looks again after every
report that matters and after a while, so that a lost message costs time and nothing else. A host is
judged by what it says, never by its connection. What a process of a host said before its farewell
does not count any more after it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from pupitre.cluster import registration
from pupitre.cluster.clocks import Clocks
from pupitre.cluster.host_warnings import HostWarnings, Warnings
from pupitre.cluster.image_trust import ImageTrust
from pupitre.cluster.liveness import RUNS, Liveness
from pupitre.cluster.start_limit import Allowance
from pupitre.config import Settings
from pupitre.domain.bounds import MOST_GUESTS
from pupitre.domain.command import RegisterHost
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HOST_LIFE, HostEvent, HostState
from pupitre.domain.image import Image, ImageSpec
from pupitre.domain.order_proof import Ordered, prove, proven
from pupitre.domain.report import LastKnownPosition
from pupitre.domain.warning import WarningCode, warn
from pupitre.errors import LinkDown, MessageError, Unavailable
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import Workers
from pupitre.scheduler import host_life
from pupitre.scheduler import registration as registering
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import lose_desktops
from pupitre.scheduler.host_commands import ANSWERING, AT_ONCE, READY, UNREGISTERED, HostOrder, host_of
from pupitre.scheduler.host_life import Limits, Step
from pupitre.scheduler.reports import ReportResult, apply_report, report_read_set
from pupitre.scheduler.restore import SET_ASIDE, WAITS, Prove, ReportPolicy, choose_policy, conflict_warnings
from pupitre.scheduler.state import JournaledCommand, ReadSet, is_suspended
from pupitre.store.cluster import ClusterStore
from pupitre.wire.connection import Link
from pupitre.wire.messages import AnyMessage, Describe, Done, EnsureGone, Farewell, Heartbeat, PowerOff, Report
from pupitre.wire.subjects import Subjects
from pupitre.wire.wake import wake

log = structlog.get_logger(__name__)
Images = list[tuple[Image, ImageSpec | None]]


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a report changed, and whether it may be the host's turn for a step."""

    findings: ReportResult
    moves: bool
    stale: bool = False
    described: bool = True


class Hosts:
    """``wake_desktop`` has a desktop looked at; ``on_move`` hears of every step of a host."""

    def __init__(
        self,
        settings: Settings,
        store: ClusterStore,
        link: Link,
        *,
        key: Ed25519PrivateKey,
        registry: CollectorRegistry,
        wake_desktop: Callable[[str], None],
        on_move: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._link = link
        self._subjects = Subjects(settings.cluster)
        self._wake_desktop = wake_desktop
        self._on_move = on_move
        self._workers = Workers(self._step, retry=1.0)
        self._registrations = Workers(self._register, retry=1.0)
        self._liveness = Liveness(settings.host_timeout, self._is_silent, lambda: link.connected)
        self._limits = Limits(int(settings.host_give_up * 1000), int(settings.host_timeout * 1000))
        self._orphans: dict[str, frozenset[str]] = {}
        self._leaving: set[str] = set()
        self._runs: dict[str, deque[str]] = {}
        self._departed: dict[str, frozenset[str]] = {}
        self._described: set[str] = set()
        self._reconciled: dict[str, LastKnownPosition] = {}
        self._key, self._public = key, key.public_key()
        self._warnings = HostWarnings(registry)
        self._clocks = Clocks()
        self._trust = ImageTrust(settings)
        self._allowance = Allowance()

    def takes_orders(self, host: str) -> bool:
        """Whether it is known what runs there, and that this database knows no less than the host."""
        return (
            host in self._described and host not in self._store.state.conflicts and not self._store.state.is_suspended
        )

    async def serve(self) -> None:
        """Begin to hear the hosts."""
        await self._link.serve(
            self._subjects.reports("*"),
            self._on_report,
            in_order=True,
            due_on=self._due_on,
            on_refused=self._on_refused,
        )
        await self._link.serve(
            self._subjects.heartbeats("*"), self._on_heartbeat, due_on=self._due_on, on_refused=self._on_refused
        )
        for host in await self._store.hosts():
            if HOST_LIFE.allows(host.state, HostEvent.MISS):
                self._liveness.expect(host.name)

    async def watch(self) -> None:
        """Notice silence, until cancelled."""
        await self._liveness.watch()

    async def close(self) -> None:
        await self._workers.close()
        await self._registrations.close()

    async def resume(self, unfinished: list[JournaledCommand]) -> None:
        """Have every host looked at again, and call them all. Raises `Unavailable`."""
        self._liveness.forgive()
        await self._link.publish(self._subjects.all_hosts, Describe(epoch=self._store.epoch))
        for host in await self._store.hosts():
            self._workers.wake(host.name)
        for entry in unfinished:
            if isinstance(entry.order, RegisterHost):
                self._registrations.wake(entry.id)

    async def take_up(self, entry: JournaledCommand) -> None:
        """A command about a host was journalled, or given up."""
        if isinstance(entry.order, RegisterHost):
            self._registrations.wake(entry.id)
        if isinstance(entry.order, HostOrder):
            name = await self._store.change(partial(host_of, command=entry))
            if name:
                self._workers.wake(name)

    def wake(self, name: str) -> None:
        self._workers.wake(name)

    # What hosts say

    def _due_on(self, message: AnyMessage) -> str | None:
        """A host speaks for itself alone."""
        if isinstance(message, Report | Farewell):
            return self._subjects.reports(message.host)
        return self._subjects.heartbeats(message.host) if isinstance(message, Heartbeat) else None

    def _on_refused(self, subject: str, reason: str) -> None:
        """A host said what nobody can read or use: that host is set aside, and nothing else."""
        self._refuse(self._subjects.host_of(subject), reason)

    def _refuse(self, host: str, reason: str) -> None:
        self._link.spawn(self._warn(host, "reports", (warn(WarningCode.REPORTS_REFUSED, text=reason),)))

    async def _warn(self, host: str, source: str, warnings: Warnings) -> None:
        """Show what ``source`` has found out about a registered host."""

        def write(changes: Changes) -> None:
            if (seen := changes.host(host)) and self._warnings.put(host, source, warnings):
                changes.put_host(replace(seen, warnings=self._warnings.of(host)))

        await self._store.change(write)

    async def _on_report(self, message: AnyMessage) -> AnyMessage:
        if isinstance(message, Farewell):
            await self._on_farewell(message)
        elif isinstance(message, Report):
            gap = not message.full and not self._liveness.follows(message.host, message.run, message.number)
            kept = await self._take(message)
            if kept and gap:
                self._link.spawn(self._describe(message.host))
            return Done(kept=kept)
        else:
            raise MessageError(f"The cluster takes no {type(message).__name__} as a report.")
        return Done()

    async def _on_farewell(self, message: Farewell) -> None:
        def depart(changes: Changes) -> None:
            # Here, since a report may wait for its turn to be written already.
            self._departed[message.host] = frozenset([*self._runs.get(message.host, ()), message.run])
            host_life.record_shutdown(changes, message.host, now=now_ms())

        await self._store.change(depart, ReadSet(hosts=frozenset({message.host}), host_commands=True))
        log.info("A host has shut down.", host=message.host)
        self._leaving.discard(message.host)
        self._liveness.forget(message.host)
        self._workers.wake(message.host)
        self._on_move()  # its worker may wait for the answer to an order that has died with the host

    async def _on_heartbeat(self, message: AnyMessage) -> None:
        if not isinstance(message, Heartbeat):
            raise MessageError(f"The cluster takes no {type(message).__name__} as a heartbeat.")
        if self._has_departed(message.host, message.run):
            return
        self._liveness.heard(message.host)
        if message.at:
            loop_time = asyncio.get_running_loop().time()
            warnings = self._clocks.heard(message.host, message.at, now=now_ms(), loop_time=loop_time)
            if warnings is not None:
                await self._warn(message.host, "clock", warnings)
        is_due = self._trust.is_due(message.host, loop_time=asyncio.get_running_loop().time())
        if is_due or self._liveness.is_news(message.host, message.run, message.number):
            await self._describe(message.host)

    async def _describe(self, host: str) -> None:
        """Ask the host for everything; silence is noticed elsewhere."""
        try:
            report = await self._link.request(self._subjects.orders(host), Describe(epoch=self._store.epoch), Report)
        except MessageError as error:
            log.warning("What a host says of itself is refused.", host=host, reason=str(error)[:500])
            self._refuse(host, str(error))
            return
        except LinkDown as error:
            log.debug("A host did not describe itself.", host=host, reason=str(error))
            return
        if report.host == host:
            await self._take(report)

    async def _take(self, report: Report, *, is_new: bool = False) -> bool:
        """Write a report of a registered host; False for any other."""
        if self._has_departed(report.host, report.run):
            return True  # a word from before its farewell
        images = self._images_of(report)
        taken = await self._store.change(
            partial(self._write, report=report, images=images, is_new=is_new), report_read_set(report)
        )
        if taken is None:
            return False
        runs = self._runs.setdefault(report.host, deque(maxlen=RUNS))
        if report.run not in runs:
            runs.append(report.run)
        self._liveness.heard(report.host)
        if taken.stale:
            return True  # if anything is missing, the next heartbeat shows it
        if report.full:
            self._described.add(report.host)
        elif not taken.described:
            self._link.spawn(self._describe(report.host))
        if report.full or self._liveness.follows(report.host, report.run, report.number):
            self._liveness.took(report.host, report.run, report.number)
        gone = {sighting.desktop for sighting in report.desktops if sighting.state is DesktopState.GONE}
        orphans = taken.findings.orphans
        known = (self._orphans.get(report.host, frozenset()) | orphans) - gone
        self._orphans[report.host] = known if len(known) <= MOST_GUESTS else orphans
        self._allowance.use(report.host, taken.findings.lines, taken.findings.refused)
        for desktop in taken.findings.wake:
            self._wake_desktop(desktop)
        for orphan in orphans:
            log.warning("A host has a desktop that nobody wants; it is removed.", host=report.host, desktop=orphan)
            self._link.spawn(self._remove_orphan(report.host, orphan))
        if taken.moves:
            self._workers.wake(report.host)
        return True

    def _images_of(self, report: Report) -> Images | None:
        """What the host is believed to hold; None: as before, until it has shown what it says it holds."""
        if report.copies is None:
            return None
        faults, loop_time = self._trust.learn(report.manifests), asyncio.get_running_loop().time()
        if not report.full and not self._trust.knows(report) and not faults:
            self._link.spawn(self._describe(report.host))
            return None
        images, refused = self._trust.copies(report, faults, loop_time=loop_time)
        self._warnings.put(report.host, "images", refused)
        return images

    def _write(self, changes: Changes, report: Report, *, images: Images | None, is_new: bool) -> _Taken | None:
        """A decision: what the report changes; None when its host is not registered."""
        now, held = now_ms(), changes.hosts.get(report.host)
        if held is None:
            return None
        stale = self._liveness.is_stale(report.host, report.run, report.number)
        if stale or self._has_departed(report.host, report.run):
            return _Taken(ReportResult(), moves=False, stale=True)
        self._liveness.write(report.host, report.run, report.number)
        policy, since = self._judge(changes, report, is_new=is_new, now=now)
        doubted = None
        if policy is ReportPolicy.SUSPENDED:
            doubted = WAITS if is_suspended(changes.conflicts.values()) else SET_ASIDE
        host, wanted = held.host, held.wanted
        if host.state is HostState.SHUT_DOWN:
            wanted = READY  # somebody has switched it on
        state = HOST_LIFE.next(host.state, HostEvent.REPORT if wanted == READY else HostEvent.DRAIN)
        moved = state is not host.state
        if moved:
            log.info("A host is there.", host=host.name)
        seen = replace(
            host,
            state=state,
            since=now if moved else host.since,
            reason=doubted or (None if wanted == READY else host.reason),
            facts=report.facts or host.facts,
            port=report.port,
            viewer_port=report.viewer_port,
            warnings=self._warnings.report(report),
        )
        changes.put_host(seen, wanted=wanted, drained_by=None if wanted == READY else held.drained_by)
        if images is not None:
            changes.put_copies(host.name, images)
        noted = self._orphans.get(report.host, frozenset())
        may_audit = self._allowance.left(report.host, now=now)
        findings = apply_report(
            changes,
            report,
            now=now,
            audited=noted,
            policy=policy,
            since=since,
            may_audit=may_audit,
            prove=self._prover(host.name),
        )
        if (refused := findings.refused + self._allowance.refused[host.name]) or may_audit:
            too_many = (warn(WarningCode.TOO_MANY_FINDINGS, refused),) if refused else ()
            self._warnings.put(host.name, "allowance", too_many)
        self._warnings.put(host.name, "doubt", conflict_warnings(changes, host.name))
        changes.put_host(replace(seen, warnings=self._warnings.of(host.name)))
        pending = changes.conflicts.get(host.name)
        described = pending is None or not pending.confirmed
        return _Taken(findings, moves=moved or wanted != READY, described=described)

    def _judge(self, changes: Changes, report: Report, *, is_new: bool, now: int) -> tuple[ReportPolicy, int]:
        host, heard = report.host, report.heard
        known = heard is None or self._reconciled.get(host) == heard or self._store.knows(heard.epoch, heard.sequence)
        epoch, confirmed = self._store.epoch, self._store.state.confirmed
        policy, since = choose_policy(
            changes,
            report,
            self._prover(host),
            is_new=is_new,
            now=now,
            known=known,
            epoch=epoch,
            confirmed=confirmed,
        )
        if policy is ReportPolicy.ADOPT and heard:
            self._reconciled[host] = heard
        return policy, since

    def _prover(self, host: str) -> Prove:
        return partial(proven, key=self._public, host=host)

    def _has_departed(self, host: str, run: str) -> bool:
        return run in self._departed.get(host, ())

    async def _remove_orphan(self, host: str, desktop: str) -> None:
        epoch, sequence = self._store.epoch, self._store.version
        proof = prove(Ordered(host, epoch, sequence, desktop), self._key)
        order = EnsureGone(epoch=epoch, desktop=desktop, sequence=sequence, proof=proof)
        try:
            await self._link.request(self._subjects.orders(host), order, Done)
        except (LinkDown, MessageError) as error:
            log.warning("An orphan stays for now.", host=host, desktop=desktop, reason=str(error))

    async def _is_silent(self, name: str) -> None:
        def silent(changes: Changes) -> None:
            now, host = now_ms(), changes.host(name)
            if host is None or not HOST_LIFE.allows(host.state, HostEvent.MISS):
                return
            log.warning("A host does not answer; its desktops are lost until it does.", host=name)
            state = HOST_LIFE.next(host.state, HostEvent.MISS)
            changes.put_host(replace(host, state=state, since=now, reason="it does not answer"))
            lose_desktops(changes, name, now=now)

        await self._store.change(silent, ReadSet(hosts=frozenset({name})))
        self._workers.wake(name)

    # What is done to them

    async def _step(self, name: str) -> float | None:
        if self._store.state.is_suspended:
            return 1.0

        def decide(changes: Changes) -> Step:
            held = changes.hosts.get(name)
            if held and name in changes.conflicts and (held.wanted, held.drained_by) == (UNREGISTERED, AT_ONCE):
                return host_life.leave_unheard(changes, held, now=now_ms())
            if held and held.host.state in ANSWERING and not self.takes_orders(name):
                return Step(again=1.0)  # first it says what runs there
            now, is_leaving = now_ms(), name in self._leaving
            return host_life.settle(changes, name, now=now, limits=self._limits, is_leaving=is_leaving)

        step = await self._store.change(decide, ReadSet(hosts=frozenset({name}), host_commands=True))
        for desktop in step.wake:
            self._wake_desktop(desktop)
        if step.removed:
            log.info("A host was unregistered.", host=name)
            self._leaving.discard(name)
            self._warnings.forget(name)
            self._clocks.forget(name)
            self._trust.forget(name)
            self._allowance.forget(name)
            self._liveness.forget(name)
        if step.describe:
            self._link.spawn(self._describe(name))
        if step.mac:
            self._send_packet(step.mac)
        if step.power_off:
            await self._power_off(name, at_once=step.at_once)
        elif step.again is None:
            self._leaving.discard(name)
        self._on_move()
        return step.again

    def _send_packet(self, mac: str) -> None:
        try:
            wake(mac, self._settings.wake_address)
        except Unavailable as error:
            log.warning("A host is not woken yet.", reason=str(error))

    async def _power_off(self, name: str, *, at_once: bool) -> None:
        order = PowerOff(epoch=self._store.epoch, at_once=at_once, run=self._liveness.run(name))
        try:
            await self._link.request(self._subjects.orders(name), order, Done)
            self._leaving.add(name)
        except (LinkDown, MessageError) as error:
            log.warning("A host did not take the order to shut down; it is sent again.", host=name, reason=str(error))

    async def _register(self, command: str) -> float | None:
        entry = await self._store.command(command)
        if entry is None or entry.outcome is not None or not isinstance(entry.order, RegisterHost):
            return None
        report, fault = await registration.look(self._link, self._subjects, entry.order, self._store.epoch)
        decide = partial(registering.decide, command=command, report=report, fault=fault, now=now_ms())
        if await self._store.change(decide, ReadSet(commands=frozenset({command}))) and report:
            self._departed.pop(entry.order.name, None)
            await self._take(report, is_new=True)
            log.info("Host registered.", host=entry.order.name)
            self._workers.wake(entry.order.name)
        return None
