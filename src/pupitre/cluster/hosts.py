"""Hosts: what is wanted of each of them is done.

One worker for each host asks `pupitre.scheduler.host_life` for the next step and takes it; it looks again after every
report that matters and after a while, so that a lost message costs time and nothing else.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from pupitre.cluster.host_reports import HostReports
from pupitre.cluster.host_session import SessionEvent, SessionState
from pupitre.cluster.host_warnings import HostWarnings
from pupitre.cluster.image_trust import ImageTrust
from pupitre.cluster.liveness import HostSessions
from pupitre.cluster.registration import ask_host
from pupitre.config import Settings
from pupitre.domain.command import RegisterHost
from pupitre.domain.host import HOST_LIFE, HostEvent
from pupitre.errors import MessageError, NoAnswer, Unavailable
from pupitre.runtime.clock import now_ms
from pupitre.runtime.workers import Workers
from pupitre.scheduler import host_life, registration
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import lose_desktops
from pupitre.scheduler.host_commands import ANSWERING, AT_ONCE, UNREGISTERED, HostOrder, host_of
from pupitre.scheduler.host_life import Limits, Step
from pupitre.scheduler.state import JournaledCommand, ReadSet
from pupitre.store.cluster import ClusterStore
from pupitre.timings import ORDER_RETRY
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Describe, Done, PowerOff
from pupitre.wire.subjects import Subjects
from pupitre.wire.wake import wake

log = structlog.get_logger(__name__)


class Hosts:
    """``wake_desktop`` has a desktop looked at; ``on_move`` hears of every step of a host."""

    def __init__(
        self,
        settings: Settings,
        store: ClusterStore,
        broker: BrokerConnection,
        *,
        key: Ed25519PrivateKey,
        registry: CollectorRegistry,
        wake_desktop: Callable[[str], None],
        on_move: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._broker = broker
        self._subjects = Subjects(settings.cluster)
        self._wake_desktop = wake_desktop
        self._on_move = on_move
        self._workers = Workers(self._step)
        self._registrations = Workers(self._register)
        self._limits = Limits(int(settings.host_give_up * 1000), int(settings.host_timeout * 1000))
        self._warnings = HostWarnings(registry)
        self._trust = ImageTrust(settings)
        self._sessions = HostSessions(settings.host_timeout, self._on_silence, lambda: broker.connected)
        self._reports = HostReports(
            store,
            broker,
            self._subjects,
            self._sessions,
            self._warnings,
            self._trust,
            key=key,
            wake_desktop=wake_desktop,
            wake_host=self._workers.wake,
            on_move=on_move,
        )

    def takes_orders(self, host: str) -> bool:
        """Whether it is known what runs there, and that this database knows no less than the host."""
        state = self._store.state
        return self._sessions.get(host).takes_orders and host not in state.conflicts and not state.is_suspended

    async def serve(self) -> None:
        """Begin to hear the hosts."""
        await self._reports.serve()
        for host in await self._store.hosts():
            if HOST_LIFE.allows(host.state, HostEvent.MISS):
                self._sessions.expect(host.name)

    async def watch(self) -> None:
        """Notice silence, until cancelled."""
        await self._sessions.watch()

    async def close(self) -> None:
        await self._workers.close()
        await self._registrations.close()

    async def resume(self, unfinished: list[JournaledCommand]) -> None:
        """Have every host looked at again, and call them all. Raises `Unavailable`."""
        self._sessions.reset_timers()
        await self._broker.publish(self._subjects.all_hosts, Describe(epoch=self._store.epoch))
        for host in await self._store.hosts():
            self._workers.wake(host.name)
        for command in unfinished:
            if isinstance(command.order, RegisterHost):
                self._registrations.wake(command.id)

    async def take_up(self, command: JournaledCommand) -> None:
        """A command about a host was journalled, or given up."""
        if isinstance(command.order, RegisterHost):
            self._registrations.wake(command.id)
        if isinstance(command.order, HostOrder):
            name = await self._store.change(partial(host_of, command=command))
            if name:
                self._workers.wake(name)

    def wake(self, name: str) -> None:
        """Have the host looked at."""
        self._workers.wake(name)

    async def _on_silence(self, name: str) -> None:
        def silent(changes: Changes) -> None:
            now, host = now_ms(), changes.host(name)
            if host is None or not HOST_LIFE.allows(host.state, HostEvent.MISS):
                return
            log.warning("host_silent", host=name)
            state = HOST_LIFE.next(host.state, HostEvent.MISS)
            changes.put_host(replace(host, state=state, since=now, reason="it does not answer"))
            lose_desktops(changes, name, now=now)

        await self._store.change(silent, ReadSet(hosts=frozenset({name})))
        self._workers.wake(name)

    async def _step(self, name: str) -> float | None:
        if self._store.state.is_suspended:
            return ORDER_RETRY
        session = self._sessions.get(name)

        def decide(changes: Changes) -> Step:
            registered = changes.hosts.get(name)
            gives_up = registered and (registered.wanted, registered.drained_by) == (UNREGISTERED, AT_ONCE)
            if registered and gives_up and name in changes.conflicts:
                return host_life.leave_unheard(changes, registered, now=now_ms())
            if registered and registered.host.state in ANSWERING and not self.takes_orders(name):
                return Step(again=ORDER_RETRY)  # first it says what runs there
            is_leaving = session.state is SessionState.LEAVING
            return host_life.settle(changes, name, now=now_ms(), limits=self._limits, is_leaving=is_leaving)

        step = await self._store.change(decide, ReadSet(hosts=frozenset({name}), host_commands=True))
        for desktop in step.wake:
            self._wake_desktop(desktop)
        if step.removed:
            log.info("host_unregistered", host=name)
            session.forget()
            self._warnings.forget(name)
            self._trust.forget(name)
        if step.describe:
            self._broker.spawn(self._reports.describe(name))
        if step.mac:
            self._send_packet(step.mac)
        if step.power_off:
            await self._power_off(name, at_once=step.at_once)
        elif step.again is None:
            session.advance(SessionEvent.STAY)
        self._on_move()
        return step.again

    def _send_packet(self, mac: str) -> None:
        try:
            wake(mac, self._settings.wake_address)
        except Unavailable as error:
            log.warning("wake_packet_unsent", reason=str(error))

    async def _power_off(self, name: str, *, at_once: bool) -> None:
        session = self._sessions.of(name)
        order = PowerOff(epoch=self._store.epoch, at_once=at_once, run=session.latest.run)
        try:
            await self._broker.request(self._subjects.orders(name), order, Done)
            session.advance(SessionEvent.POWER_OFF)
        except (NoAnswer, MessageError) as error:
            log.warning("power_off_not_taken", host=name, reason=str(error))

    async def _register(self, command_id: str) -> float | None:
        command = await self._store.command(command_id)
        if command is None or command.outcome is not None or not isinstance(command.order, RegisterHost):
            return None
        name = command.order.name
        report, fault = await ask_host(self._broker, self._subjects, command.order, self._store.epoch)
        decide = partial(registration.decide, command=command_id, report=report, fault=fault, now=now_ms())
        if await self._store.change(decide, ReadSet(commands=frozenset({command_id}))) and report:
            self._sessions.of(name).rejoin()
            await self._reports.take(report, is_new=True)
            log.info("host_registered", host=name)
            self._workers.wake(name)
        return None
