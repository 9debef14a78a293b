"""A process's link to the broker: requests, notices, handlers; back by itself after any outage.

What cannot be read is logged, counted and set aside, and never ends the link.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from prometheus_client import CollectorRegistry, Counter

from pupitre.errors import LinkDown, MessageError, PupitreError
from pupitre.wire.messages import MAX_SIZE, AnyMessage, Done, Refused, decode, encode
from pupitre.wire.subjects import inbox

log = structlog.get_logger(__name__)

M = TypeVar("M", bound=AnyMessage)
Handler = Callable[[AnyMessage], Awaitable[AnyMessage | None]]
DueOn = Callable[[AnyMessage], str | None]
"""The one subject on which a message may come; None where it does not matter."""


class Link:
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
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._set_aside = Counter(
            "pupitre_messages_set_aside", "Messages that nobody could read", ["subject"], registry=registry
        )

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    async def open(self) -> None:
        """Connect, waiting for the broker as long as it takes."""

        async def lost() -> None:
            if not self._closing:
                log.warning("The message broker is away.")
            self._changed(False)

        async def back() -> None:
            log.info("The message broker is back.")
            self._changed(True)

        said = ""

        async def failed(error: Exception) -> None:
            nonlocal said
            if not self._client.is_connected and str(error) != said and not self._closing:
                said = str(error)
                log.warning("The message broker is not reached.", servers=self._servers, error=said)
            else:
                log.debug("The message broker said.", error=str(error))

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
                    connect_timeout=5,
                    ping_interval=10,
                    max_outstanding_pings=2,
                    disconnected_cb=lost,
                    reconnected_cb=back,
                    error_cb=failed,
                )
            except (NatsError, OSError, TimeoutError) as error:
                log.warning("The message broker does not answer yet.", servers=self._servers, error=str(error))
                await asyncio.sleep(0.5)
                continue
            self._changed(True)
            return

    async def close(self) -> None:
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client.is_connected:
            with contextlib.suppress(NatsError, TimeoutError):
                await asyncio.wait_for(self._client.flush(), 1)
        await self._client.close()

    async def request(self, subject: str, message: AnyMessage, answer: type[M], *, timeout: float = 2.0) -> M:
        """Send and wait for the answer.

        Raises `LinkDown` when nobody answers within ``timeout`` seconds and
        `MessageError` when the peer refuses the message or answers nonsense.
        """
        if not self._client.is_connected:
            raise LinkDown("The message broker is not reached.")
        data = encode(message)
        if len(data) > MAX_SIZE:
            raise MessageError(f"A {type(message).__name__} of {len(data)} bytes is over the limit of {MAX_SIZE}.")
        try:
            reply = await self._client.request(subject, data, timeout=timeout)
        except NoRespondersError as error:
            raise LinkDown("Nobody is there to answer.") from error
        except (NatsError, TimeoutError, OSError) as error:
            raise LinkDown(f"No answer within {timeout:g} s.") from error
        received = decode(reply.data)
        if isinstance(received, Refused):
            raise MessageError(received.reason)
        if not isinstance(received, answer):
            raise MessageError(f"Asked for {answer.__name__}, got {type(received).__name__}.")
        return received

    async def publish(self, subject: str, message: AnyMessage) -> None:
        """Send without an answer; lost when the broker is away."""
        if self._client.is_connected:
            try:
                await self._client.publish(subject, encode(message))
            except NatsError as error:
                log.debug("A notice was lost.", subject=subject, error=str(error))

    async def serve(
        self, subject: str, handler: Handler, *, in_order: bool = False, due_on: DueOn | None = None
    ) -> Subscription:
        """Give each message on ``subject`` to ``handler``; what it returns is the answer.

        Messages are handled side by side, or one after the other when ``in_order``. The broker
        holds each sender to its subjects; ``due_on`` holds what is said to the subject it came on.
        """

        async def one(message: Msg) -> None:
            try:
                received = decode(message.data)
                if due_on and due_on(received) not in (None, message.subject):
                    raise MessageError("It speaks for someone else.")
                answer = await handler(received)
            except MessageError as error:
                self._set_aside.labels(subject=subject).inc()
                log.warning("A message was set aside.", subject=message.subject, reason=str(error)[:500])
                answer = Refused(code=error.code, reason=str(error)[:500])
            except PupitreError as error:
                # No answer: the sender keeps the message and sends it again.
                log.warning("A message could not be handled yet.", subject=message.subject, reason=str(error))
                return
            except Exception:  # a fault of ours with one message must neither end the link nor go unseen
                self._set_aside.labels(subject=subject).inc()
                log.exception("A message was set aside: it could not be handled.", subject=message.subject)
                return
            if message.reply:
                try:
                    await self._client.publish(message.reply, encode(answer or Done()))
                except NatsError as error:
                    log.debug("An answer was lost.", subject=message.subject, error=str(error))

        async def beside(message: Msg) -> None:
            self.spawn(one(message))

        return await self._client.subscribe(subject, cb=one if in_order else beside)

    async def settle(self) -> None:
        """Let what is under way end, for a moment, and have it sent."""
        others = self._tasks - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=2)
        with contextlib.suppress(NatsError, TimeoutError):
            await asyncio.wait_for(self._client.flush(), 1)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside everything else; it ends with the link at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PupitreError):
            log.warning("Something could not be done.", reason=str(error))
        elif error:
            log.error("Something could not be done, for no reason we know.", exc_info=error)

    def _changed(self, connected: bool) -> None:
        if self._on_change and not self._closing:
            self._on_change(connected)
