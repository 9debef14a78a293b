"""Dispatcher of commands: from their rows to the cluster; one that gets no answer is ended.

A command leaves its row only along `COMMAND_LIFE`. It is sent until the cluster
answers that it is journalled; one that the cluster cannot be told of within the
grace period ends with CONNECTION_ERROR, one without outcome at its deadline is
timed out, and in both cases the cluster is told to undo what it may have made.
"""

import asyncio

import structlog
from prometheus_client import CollectorRegistry, Counter

from pupitre.domain.command import Command, CommandEvent, CommandKind, CommandState, Fault
from pupitre.endpoint.cluster_contact import ClusterContact
from pupitre.endpoint.delivery import Delivery, DeliveryEvent
from pupitre.errors import ConnectionFault, MessageError, NoAnswer, TimedOut, Unavailable
from pupitre.runtime.clock import SteadyClock, now_ms
from pupitre.runtime.workers import Workers, retry_loop
from pupitre.store.commands import ASKED, Commands
from pupitre.timings import ACCEPT_WRITE, DEADLINES_UNKNOWN, GATHER, RESEND
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import Abandon, Done, Submit
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)

PAGE = 500
"""Commands that are read, and sent, at once."""


class CommandDispatcher:
    """``contact`` is told of every answer of the cluster and of every missing one; times are in seconds."""

    def __init__(
        self,
        commands: Commands,
        broker: BrokerConnection,
        subjects: Subjects,
        contact: ClusterContact,
        *,
        check_interval: float,
        grace: float,
        starts_per_user: int,
        registry: CollectorRegistry,
    ) -> None:
        self._commands = commands
        self._broker = broker
        self._subject = subjects.commands
        self._contact = contact
        self._check_interval = check_interval
        self._clock = SteadyClock()  # a clock that jumps times nobody out
        self._grace_ms = int(grace * 1000)
        self._starts_per_user = starts_per_user
        self._deliveries: dict[str, Delivery] = {}
        self._has_more = False  # what ends may give another one its turn
        self._read_due = asyncio.Event()
        self._abandon_due = asyncio.Event()
        self._catch_up_due = asyncio.Event()
        self._deadlines_due = asyncio.Event()
        self._write_due = asyncio.Event()
        self._senders = Workers(self._send, limit=PAGE, retry=RESEND)
        self._outcomes = Counter("pupitre_outcomes", "Outcomes of commands", ["outcome"], registry=registry)
        contact.call_on_return(self.wake)

    def wake(self) -> None:
        """Look at everything again, and try at once what was to wait for its next try."""
        self._read_due.set()
        self._abandon_due.set()
        for command_id in self._deliveries:
            self._senders.wake(command_id)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(retry_loop(self._read_waiting, self._read_due, pauses=RESEND))
                tasks.create_task(retry_loop(self._abandon_all, self._abandon_due, pauses=RESEND))
                tasks.create_task(retry_loop(self._catch_up, self._catch_up_due, pauses=RESEND))
                tasks.create_task(self._time_out_commands())
                tasks.create_task(self._write_journalled())
        finally:
            await self._senders.close()

    async def end(self, command: str, event: CommandEvent, fault: Fault | None, *, abandon: bool = False) -> None:
        """Write an outcome; a second one changes nothing but what is remembered as late.

        Raises `Unavailable`; then it may have been written all the same.
        """
        try:
            moved = await self._commands.advance(command, event, now=now_ms(), fault=fault, abandon=abandon)
        except Unavailable:
            self._catch_up_due.set()
            raise
        self._drop(command)
        if moved:
            self._outcomes.labels(outcome=fault.code if fault else str(event)).inc()
            if fault:
                log.info("command_ended", command=command, outcome=str(event), reason=fault.reason)
        if abandon:
            self._abandon_due.set()
        if self._has_more:
            self._read_due.set()

    async def _listen(self) -> None:
        self._abandon_due.set()  # what an earlier process has left
        async with self._commands.database.listen(ASKED) as listener:
            while True:
                self._read_due.set()
                self._deadlines_due.set()
                await listener.wait()

    async def _catch_up(self) -> bool:
        """A write that may have been made is known after this: look at all that it may have changed."""
        await self._commands.catch_up()
        self._read_due.set()
        self._abandon_due.set()
        return True

    async def _read_waiting(self) -> bool:
        """Begin to send what waits."""
        self._has_more = True  # what ends meanwhile may give another one its turn
        waiting, self._has_more = await self._commands.to_send(starts_per_user=self._starts_per_user, limit=PAGE)
        for command in waiting:
            if command.id not in self._deliveries:
                self._deliveries[command.id] = Delivery(command)
                self._senders.wake(command.id)
        if len(waiting) > 1:
            await asyncio.sleep(GATHER)
        return True

    async def _send(self, command_id: str) -> float | None:
        """One try; None when the cluster has it, or it has ended."""
        delivery = self._deliveries.get(command_id)
        if delivery is None or delivery.is_journalled:
            return None
        command = delivery.command
        message = Submit(id=command.id, user=command.user, order=command.order, deadline=command.deadline)
        try:
            await self._broker.request(self._subject, message, Done)
        except NoAnswer as error:
            await self._contact.missed(f"The cluster server does not answer: {error}")
            if not await self._give_up(command, str(error)):
                return delivery.backoff.next()
        except MessageError as error:
            fault = Fault(error.code, f"The cluster refused the command: {error}")
            await self.end(command.id, CommandEvent.FAIL, fault)
        else:
            await self._contact.heard()
            if command_id in self._deliveries:  # else its outcome was here first
                delivery.advance(DeliveryEvent.ANSWER)
                delivery.answered = asyncio.get_running_loop().time()
                self._write_due.set()
        return None

    def _drop(self, command_id: str) -> None:
        if delivery := self._deliveries.pop(command_id, None):
            delivery.advance(DeliveryEvent.WRITE)

    async def _write_journalled(self) -> None:
        """Write that the cluster has journalled a command, if its outcome does not come first.

        Nothing depends on it: a command that is sent again is known to the cluster.
        """
        while True:
            await self._write_due.wait()
            self._write_due.clear()
            while any(delivery.is_journalled for delivery in self._deliveries.values()):
                await asyncio.sleep(ACCEPT_WRITE)
                due = asyncio.get_running_loop().time() - ACCEPT_WRITE
                late = [id for id, one in self._deliveries.items() if one.is_journalled and one.answered <= due]
                try:
                    await asyncio.gather(*(self._write(command_id) for command_id in late))
                except Unavailable as error:
                    log.warning("commands_database_away", reason=str(error))

    async def _write(self, command_id: str) -> None:
        await self._commands.advance(command_id, CommandEvent.ACCEPT, now=now_ms())
        self._drop(command_id)

    async def _give_up(self, command: Command, reason: str) -> bool:
        """End a command that was tried long enough; whether that was the last try."""
        now = self._clock.now()
        if now - command.created >= self._grace_ms or now >= command.deadline:
            sentence = f"The cluster is not reached: {reason} Nothing was started; try again later."
            await self.end(command.id, CommandEvent.FAIL, Fault(ConnectionFault.code, sentence), abandon=True)
            return True
        if command.state is CommandState.QUEUED:
            await self._commands.advance(command.id, CommandEvent.SEND, now=now)
        return False

    async def _abandon_all(self) -> bool:
        """Tell the cluster of the commands that nobody waits for; True when it knows of all."""
        all_done = True
        for command in await self._commands.to_abandon():
            message = Abandon(id=command.id, user=command.user, order=command.order, deadline=command.deadline)
            try:
                await self._broker.request(self._subject, message, Done)
            except NoAnswer as error:
                log.warning("abandon_not_sent", command=command.id, reason=str(error))
                return False
            except MessageError as error:
                log.error("abandon_refused", command=command.id, reason=str(error))
                all_done = False
                continue
            await self._commands.abandoned(command.id)
        return all_done

    async def _time_out_commands(self) -> None:
        while True:
            try:
                deadline = await self._commands.next_deadline()
                if deadline is not None and deadline <= self._clock.now():
                    await self._time_out_due()
                    continue
            except Unavailable as error:
                log.warning("commands_database_away", reason=str(error))
                deadline = self._clock.now() + int(DEADLINES_UNKNOWN * 1000)
            if deadline is None:
                await self._deadlines_due.wait()
                self._deadlines_due.clear()
                continue
            left = max(deadline - self._clock.now(), 1) / 1000
            await asyncio.sleep(min(left, self._check_interval))

    async def _time_out_due(self) -> None:
        now = self._clock.now()
        for command in await self._commands.unfinished():
            if command.deadline <= now:
                seconds = (command.deadline - command.created) / 1000
                rest = (
                    "It is still tried." if command.kind is CommandKind.DESTROY_DESKTOP else "What was begun is undone."
                )
                fault = Fault(TimedOut.code, f"There was no outcome within {seconds:g} seconds. {rest}")
                await self.end(command.id, CommandEvent.TIME_OUT, fault, abandon=True)
