"""Connection of a process to the message broker: requests, notices, handlers; back by itself after any outage.

What cannot be read is logged, counted and set aside, and never ends the connection.
"""

import asyncio
import contextlib
import random
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
import structlog
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from prometheus_client import CollectorRegistry, Counter

from pupitre.errors import MessageError, NoAnswer, PupitreError
from pupitre.runtime.batch import Batch
from pupitre.runtime.timeouts import timeout
from pupitre.timings import (
    ANSWER_LIMIT,
    BROKER_CONNECT_LIMIT,
    BROKER_FLUSH,
    BROKER_PING,
    BROKER_RECONNECT,
    BROKER_SETTLE,
)
from pupitre.wire.messages import (
    MAX_SIZE,
    Abandon,
    AnyMessage,
    AuditNotice,
    Done,
    EnsureDesktop,
    EnsureGone,
    MessageBatch,
    Outcome,
    Refused,
    Submit,
    bundled,
    decode,
    encode,
    unbundle,
)
from pupitre.wire.subjects import inbox

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=AnyMessage)
Handler = Callable[[AnyMessage], Awaitable[AnyMessage | None]]
DueOn = Callable[[AnyMessage], str | None]
"""The one subject on which a message may come; None where it does not matter."""


BUNDLED = (Submit, Abandon, EnsureDesktop, EnsureGone, Outcome, AuditNotice)
"""What may share a message with others that go the same way: each is answered soon, and may be sent again."""
BUNDLE = 64
"""Messages in one bundle."""


def _pause(tries: int) -> float:
    """Never the same for two processes: they would come back all at once."""
    return BROKER_RECONNECT.after(tries + 1) * random.uniform(0.5, 1.5)


def _next_try(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server that was tried least, after a pause."""
    server = min(servers, key=lambda one: one.reconnects)
    return server, _pause(server.reconnects)


class BrokerConnection:
    """``on_change(connected)`` is called with every loss and return of the broker."""

    def __init__(
        self,
        servers: str,
        role: str,
        tls: ssl.SSLContext,
        *,
        registry: CollectorRegistry,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self._servers = servers.split(",")
        self._role = role
        self._tls = tls
        self._on_change = on_change
        self._client = Client()
        self._served: list[tuple[str, Callable[[Msg], Awaitable[None]]]] = []
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_subject: dict[str, Batch[bytes, bytes]] = {}
        self._set_aside = Counter(
            "pupitre_messages_set_aside", "Messages that nobody could read", ["subject"], registry=registry
        )

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    async def open(self) -> None:
        """Connect, waiting for the broker as long as it takes."""
        await self._connect()
        self._changed(True)

    async def _reopen(self) -> None:
        """Begin anew after the broker has said something upon which its client gives up for good."""
        log.warning("broker_connection_closed")
        await asyncio.sleep(_pause(0))
        self._client = Client()
        await self._connect()
        for subject, handler in self._served:
            await self._client.subscribe(subject, cb=handler)
        log.info("broker_back")
        self._changed(True)

    async def _connect(self) -> None:
        async def lost() -> None:
            if not self._closing:
                log.warning("broker_away")
            self._changed(False)

        async def back() -> None:
            log.info("broker_back")
            self._changed(True)

        async def closed() -> None:
            if not self._closing:
                self.spawn(self._reopen())

        said = ""

        async def failed(error: Exception) -> None:
            nonlocal said
            if not self._client.is_connected and str(error) != said and not self._closing:
                said = str(error)
                log.warning("broker_not_reached", servers=self._servers, error=said)
            else:
                log.debug("broker_error", error=str(error))

        tries = 0
        while True:
            try:
                await self._client.connect(
                    self._servers,
                    name=self._role,
                    tls=self._tls,
                    inbox_prefix=inbox(self._role).encode(),
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    reconnect_to_server_handler=_next_try,
                    connect_timeout=BROKER_CONNECT_LIMIT,
                    ping_interval=BROKER_PING,
                    max_outstanding_pings=2,
                    disconnected_cb=lost,
                    reconnected_cb=back,
                    closed_cb=closed,
                    error_cb=failed,
                )
            except (NatsError, OSError, TimeoutError) as error:
                log.warning("broker_not_ready", servers=self._servers, error=str(error))
                await asyncio.sleep(_pause(tries))
                tries += 1
                continue
            return

    def use(self, tls: ssl.SSLContext) -> None:
        """Show another certificate from the next connection on; the one that is open stays."""
        self._tls = tls
        self._client.options["tls"] = tls

    async def close(self) -> None:
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client.is_connected:
            await self._flush()
        await self._client.close()

    async def request(self, subject: str, message: AnyMessage, answer: type[M], *, timeout: float = ANSWER_LIMIT) -> M:
        """Send and wait for the answer.

        Raises `NoAnswer` when nobody answers within ``timeout`` seconds and
        `MessageError` when the peer refuses the message or answers nonsense.
        """
        data = encode(message)
        if len(data) > MAX_SIZE:
            raise MessageError(f"A {type(message).__name__} of {len(data)} bytes is over the limit of {MAX_SIZE}.")
        bundles = isinstance(message, BUNDLED)
        received = decode(await (self._bundles(subject).do(data) if bundles else self._ask(subject, data, timeout)))
        if isinstance(received, Refused):
            raise MessageError(received.reason)
        if not isinstance(received, answer):
            raise MessageError(f"Asked for {answer.__name__}, got {type(received).__name__}.")
        return received

    async def _ask(self, subject: str, data: bytes, timeout: float) -> bytes:
        if not self._client.is_connected:
            raise NoAnswer("The message broker is not reached.")
        try:
            with _heeding_cancellation():
                reply = await self._client.request(subject, data, timeout=timeout)
        except NoRespondersError as error:
            raise NoAnswer("Nobody is there to answer.") from error
        except (NatsError, TimeoutError, OSError) as error:
            raise NoAnswer(f"No answer within {timeout:g} s.") from error
        return bytes(reply.data)

    def _bundles(self, subject: str) -> Batch[bytes, bytes]:
        if subject not in self._by_subject:
            self._by_subject[subject] = Batch(partial(self._ask_together, subject), limit=BUNDLE, at_once=2)
        return self._by_subject[subject]

    async def _ask_together(self, subject: str, messages: Sequence[bytes]) -> list[bytes | PupitreError]:
        if len(messages) == 1:
            return [await self._ask(subject, messages[0], ANSWER_LIMIT)]
        data = encode(MessageBatch(parts=tuple(msgspec.Raw(message) for message in messages)))
        if len(data) > MAX_SIZE:
            raise MessageError("A bundle is over the limit.")
        answers = decode(await self._ask(subject, data, ANSWER_LIMIT))
        if not isinstance(answers, MessageBatch) or len(answers.parts) != len(messages):
            raise MessageError("Asked for as many answers as there were messages, got something else.")
        none = NoAnswer(f"No answer within {ANSWER_LIMIT:g} s.")
        return [none if bytes(part) == b"null" else bytes(part) for part in answers.parts]

    async def publish(self, subject: str, message: AnyMessage) -> None:
        """Send without an answer; lost when the broker is away."""
        if self._client.is_connected:
            try:
                await self._client.publish(subject, encode(message))
            except NatsError as error:
                log.debug("message_not_sent", subject=subject, error=str(error))

    async def serve(
        self,
        subject: str,
        handler: Handler,
        *,
        in_order: bool = False,
        due_on: DueOn | None = None,
        on_refused: Callable[[str, str], None] = lambda _subject, _reason: None,
    ) -> None:
        """Give each message on ``subject`` to ``handler``; what it returns is the answer.

        Messages are handled side by side, or one after the other when ``in_order``. The broker
        holds each sender to its subjects; ``due_on`` holds what is said to the subject it came on.
        ``on_refused`` is called with the subject of what cannot be read or used, and why.
        """

        async def answer(data: bytes, due: str) -> AnyMessage | None:
            """Answer of ``handler`` to one message; None while it cannot be handled."""
            try:
                received = decode(data)
                if isinstance(received, MessageBatch):
                    raise MessageError("A bundle holds no bundles.")
                if due_on and due_on(received) not in (None, due):
                    raise MessageError("It speaks for someone else.")
                return await handler(received) or Done()
            except MessageError as error:
                self._set_aside.labels(subject=subject).inc()
                log.warning("message_refused", subject=due, reason=str(error)[:500])
                on_refused(due, str(error))
                return Refused(code=error.code, reason=str(error)[:500])
            except PupitreError as error:
                # No answer: the sender keeps the message and sends it again.
                log.warning("message_not_handled_yet", subject=due, reason=str(error))
            except Exception:  # a fault of ours with one message must neither end the connection nor go unseen
                self._set_aside.labels(subject=subject).inc()
                log.exception("message_failed_unexpectedly", subject=due)
                on_refused(due, "the cluster could not handle it; its log says why")
            return None

        async def one(message: Msg) -> None:
            bundle = unbundle(message.data)
            if bundle is None:
                said = await answer(message.data, message.subject)
            elif in_order:
                said = bundled([await answer(part, message.subject) for part in bundle])
            else:
                said = bundled(await asyncio.gather(*(answer(part, message.subject) for part in bundle)))
            if message.reply and said is not None:
                try:
                    await self._client.publish(message.reply, encode(said))
                except NatsError as error:
                    log.debug("answer_not_sent", subject=message.subject, error=str(error))

        async def beside(message: Msg) -> None:
            self.spawn(one(message))

        answering = one if in_order else beside
        self._served.append((subject, answering))
        await self._client.subscribe(subject, cb=answering)
        await self._until_known()

    async def _until_known(self) -> None:
        """Return when the broker knows of every subscription, so that who is told of us is answered.

        Twice: what a broker says first of all can leave the client one answer ahead, and then its flush returns
        upon the answer to the one before.
        """
        if self._client.is_connected:
            with contextlib.suppress(NatsError, TimeoutError), _heeding_cancellation():
                await self._client.flush(timeout=BROKER_SETTLE)
                await self._client.flush(timeout=BROKER_SETTLE)

    async def settle(self) -> None:
        """Let what is under way end, for a moment, and have it sent."""
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=BROKER_SETTLE)
        await self._flush()

    async def _flush(self) -> None:
        """Have what was said sent, if that takes no more than a moment."""
        with contextlib.suppress(NatsError, TimeoutError):
            async with timeout(BROKER_FLUSH):
                await self._client.flush()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside everything else; it ends with the connection at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PupitreError):
            log.warning("task_failed", reason=str(error))
        elif error:
            log.error("task_failed_unexpectedly", exc_info=error)

    def _changed(self, connected: bool) -> None:
        if self._on_change and not self._closing:
            self._on_change(connected)


@contextlib.contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Raise `CancelledError` if the task was cancelled meanwhile and the library has lost it.

    nats-py waits by `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes
    together with what it waits for: a loop that asks again and again would then go on for ever.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        yield
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError
