"""Carries commands from their rows to the cluster, and ends those that get no answer.

A command leaves its row only along `COMMAND_LIFE`. It is sent until the cluster
answers that it is journalled; one that the cluster cannot be told of within the
grace period ends with CONNECTION_ERROR, one without outcome at its deadline is
timed out, and in both cases the cluster is told to undo what it may have made.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import CollectorRegistry, Counter

from pupitre.domain.command import Command, CommandEvent, CommandKind, CommandState, Fault
from pupitre.errors import ConnectionFault, LinkDown, MessageError, TimedOut, Unavailable
from pupitre.runtime.batch import GATHER
from pupitre.runtime.clock import SteadyClock, now_ms
from pupitre.runtime.workers import Workers, persist
from pupitre.store.commands import ASKED, Commands
from pupitre.wire.connection import Link
from pupitre.wire.messages import Abandon, Done, Submit
from pupitre.wire.subjects import Subjects

log = structlog.get_logger(__name__)

PAGE = 500
RESEND = (0.25, 2.0)
"""Seconds between two tries to send: at first, and at most."""

NOTE_AFTER = 0.2
"""Seconds from the cluster's word that it has a command until that is written down: most outcomes come sooner."""


class Carrier:
    """``reach`` is told of every answer of the cluster, ``lost`` of every missing one; times are in seconds."""

    def __init__(
        self,
        commands: Commands,
        link: Link,
        subjects: Subjects,
        *,
        reach: Callable[[], Awaitable[None]],
        lost: Callable[[str], Awaitable[None]],
        check_interval: float,
        grace: float,
        starts_per_user: int,
        registry: CollectorRegistry,
    ) -> None:
        self._commands = commands
        self._link = link
        self._subjects = subjects
        self._reach = reach
        self._lost = lost
        self._check_interval = check_interval
        self._clock = SteadyClock()  # a clock that jumps times nobody out
        self._grace_ms = int(grace * 1000)
        self._starts_per_user = starts_per_user
        # Whether there is more to send when something ends, whether the cluster has yet to be told of an end, and
        # whether something may have ended without our knowing.
        self._more = False
        self._to_abandon = True
        self._unsure = False
        self._wake = asyncio.Event()
        self._asked_since = asyncio.Event()
        # Commands until they have left the states in which `_look` finds them; of those that the cluster has
        # journalled, since when (loop time).
        self._sending: dict[str, Command] = {}
        self._taken: dict[str, float] = {}
        self._some_taken = asyncio.Event()
        self._pauses: dict[str, float] = {}
        self._senders = Workers(self._send, limit=PAGE, retry=RESEND[0])
        self._outcomes = Counter("pupitre_outcomes", "Outcomes of commands", ["outcome"], registry=registry)

    def wake(self) -> None:
        """Look at everything again, and try at once what was to wait for its next try."""
        self._wake.set()
        for command in self._sending:
            self._senders.wake(command)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen())
                tasks.create_task(persist(self._look, self._wake, pauses=RESEND))
                tasks.create_task(self._time_out_commands())
                tasks.create_task(self._note_taken())
        finally:
            await self._senders.close()

    async def end(self, command: str, event: CommandEvent, fault: Fault | None, *, abandon: bool = False) -> None:
        """Write an outcome; a second one changes nothing but what is remembered as late.

        Raises `Unavailable`; then it may have been written all the same.
        """
        try:
            moved = await self._commands.advance(command, event, now=now_ms(), fault=fault, abandon=abandon)
        except Unavailable:
            self._unsure = True
            self._wake.set()
            raise
        self._forget(command)
        if moved:
            self._outcomes.labels(outcome=fault.code if fault else str(event)).inc()
            if fault:
                log.info("Command ended.", command=command, outcome=str(event), reason=fault.reason)
        self._to_abandon |= abandon
        if self._more or abandon:
            self._wake.set()  # another one may have its turn

    async def _listen(self) -> None:
        async with self._commands.database.listen(ASKED) as listener:
            while True:
                self._wake.set()
                self._asked_since.set()
                await listener.heard()

    async def _look(self) -> bool:
        """Begin to send what waits; True when there is nothing to look for again."""
        if self._unsure:
            self._unsure, self._to_abandon = False, True
            try:
                await self._commands.catch_up()
            except Unavailable:
                self._unsure = True
                raise
        self._more = True  # what ends meanwhile may give another one its turn
        waiting, self._more = await self._commands.to_send(starts_per_user=self._starts_per_user, limit=PAGE)
        for command in waiting:
            if command.id not in self._sending:
                self._sending[command.id] = command
                self._senders.wake(command.id)
        if len(waiting) > 1:
            await asyncio.sleep(GATHER)
        if self._to_abandon:
            self._to_abandon, all_done = False, False  # whatever ends meanwhile sets it again
            try:
                all_done = await self._abandon_all()
            finally:
                self._to_abandon |= not all_done
        return not self._to_abandon

    async def _send(self, key: str) -> float | None:
        """One try; None when the cluster has it, or it has ended."""
        command = self._sending.get(key)
        if command is None or key in self._taken:
            return None
        message = Submit(id=command.id, user=command.user, order=command.order, deadline=command.deadline)
        try:
            await self._link.request(self._subjects.commands, message, Done)
        except LinkDown as error:
            await self._lost(f"The cluster server does not answer: {error}")
            if not await self._not_sent(command, str(error)):
                pause = self._pauses.get(key, RESEND[0])
                self._pauses[key] = min(pause * 2, RESEND[1])
                return pause
        except MessageError as error:
            fault = Fault(error.code, f"The cluster refused the command: {error}")
            await self.end(command.id, CommandEvent.FAIL, fault)
        else:
            await self._reach()
            if key in self._sending:  # else its outcome was here first
                self._taken[key] = asyncio.get_running_loop().time()
                self._some_taken.set()
        return None

    def _forget(self, command: str) -> None:
        for held in (self._sending, self._taken, self._pauses):
            held.pop(command, None)

    async def _note_taken(self) -> None:
        """Write that the cluster has journalled a command, if its outcome does not come first.

        Nothing depends on it: a command that is sent again is known to the cluster.
        """
        while True:
            await self._some_taken.wait()
            self._some_taken.clear()
            while self._taken:
                await asyncio.sleep(NOTE_AFTER)
                due = asyncio.get_running_loop().time() - NOTE_AFTER
                late = [command for command, since in self._taken.items() if since <= due]
                try:
                    await asyncio.gather(*(self._note(command) for command in late))
                except Unavailable as error:
                    log.warning("The commands database does not answer.", reason=str(error))

    async def _note(self, command: str) -> None:
        await self._commands.advance(command, CommandEvent.ACCEPT, now=now_ms())
        self._forget(command)

    async def _not_sent(self, command: Command, reason: str) -> bool:
        """Whether that was the last try."""
        now = self._clock.now()
        if now - command.created >= self._grace_ms or now >= command.deadline:
            sentence = f"The cluster is not reached: {reason} Nothing was started; try again later."
            await self.end(command.id, CommandEvent.FAIL, Fault(ConnectionFault.code, sentence), abandon=True)
            return True
        if command.state is CommandState.QUEUED:
            await self._commands.advance(command.id, CommandEvent.SEND, now=now)
        return False

    async def _abandon_all(self) -> bool:
        all_done = True
        for command in await self._commands.to_abandon():
            message = Abandon(id=command.id, user=command.user, order=command.order, deadline=command.deadline)
            try:
                await self._link.request(self._subjects.commands, message, Done)
            except LinkDown as error:
                log.warning("The cluster has yet to undo a command.", command=command.id, reason=str(error))
                return False
            except MessageError as error:
                log.error("The cluster refuses to undo a command.", command=command.id, reason=str(error))
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
                log.warning("The commands database does not answer.", reason=str(error))
                deadline = self._clock.now() + 60_000
            if deadline is None:
                await self._asked_since.wait()
                self._asked_since.clear()
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
