"""uvicorn's HTTP protocol with limits: what a caller sends, holds back or leaves unread costs little, and not for long.

uvicorn parses whatever arrives and queues what it finds. Here the parser gets a request in
pieces of `PIECE` bytes and no byte of the next one before the answer is complete: so the
head is bounded, pipelined requests wait as bytes, and reading stops while answers wait.
"""

import asyncio
import enum
import http
from collections.abc import Iterable
from typing import Any, Protocol, cast

import httptools
import structlog
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pupitre.net.limits import HEAD_BYTES, HEADER_COUNT, HIGH_WATER
from pupitre.net.listener import Slot
from pupitre.timings import LINGER, PROXY_IDLE

PIECE = 2048
"""Bytes parsed at once: some 100 of the smallest requests, which is what can be queued before anyone looks."""
DISCARDED = 1 << 20
"""Bytes read and thrown away after a refusal, so that its sender gets to read it (no RST)."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Stage(enum.Enum):
    """Part of a request that is waited for."""

    NEXT = "the next request"
    HEAD = "the rest of its head"
    BODY = "the rest of its body"
    NOTHING = "nothing: it is being answered"
    END = "the end of the connection"


class _Flow(FlowControl):
    """Reading stays stopped while `choked`, whoever asks for more: a request is parsed after the one before."""

    choked = False

    def choke(self) -> None:
        self.choked = True
        self.pause_reading()

    def free(self) -> None:
        self.choked = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if not self.choked:
            super().resume_reading()


class _HasSlot(Protocol):
    slot: Slot | None


class BoundedHttp(HttpToolsProtocol):
    """One connection of a port, in its ``slot``."""

    flow: _Flow

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        slot: Slot,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.slot = slot
        limits = slot.limits
        self.timeout_keep_alive = PROXY_IDLE if limits.is_proxy(slot.address) else limits.idle  # type: ignore[assignment]
        self._times = {_Stage.HEAD: limits.head, _Stage.BODY: limits.body}
        self._stage = _Stage.HEAD
        self._timed = _Stage.NOTHING
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._begun = False
        self._unfed = b""
        self.url = b""
        self._framing = 0  # bytes of this request that are not its body
        self._piece_body = 0
        self._fault: http.HTTPStatus | None = None
        self._discarded = 0

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER)
        read_ahead = getattr(transport, "set_read_buffer_limits", None)
        if read_ahead is not None:  # only TLS reads ahead
            read_ahead(high=HIGH_WATER)
        self.slot.attach(transport.abort)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_times()
        self._unfed = b""
        self.slot.leave()

    def eof_received(self) -> None:
        self._linger()  # the transport closes, once what waits is written

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._linger()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(self.slot.limits.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # Reading

    def data_received(self, data: bytes) -> None:
        if self._stage is _Stage.END:
            self._discarded += len(data)
            if self._discarded > DISCARDED:
                self.transport.abort()
        elif self.flow.choked:
            self._unfed += data
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        """Parse ``data`` as far as no request is being answered; the rest waits for `on_response_complete`."""
        self._unset_keepalive_if_required()
        at, end = 0, len(data)
        while at < end:
            if self._is_answering():
                self._unfed = data[at:]
                self.flow.choke()
                break
            piece = data if end <= PIECE else data[at : at + PIECE]
            at += len(piece)
            if not self._parse(piece):
                return
        self._wait()

    def _is_answering(self) -> bool:
        cycle = self._unanswered()
        return bool(self.pipeline) or (cycle is not None and not cycle.more_body)

    def _unanswered(self) -> RequestResponseCycle | None:
        """The newest request, while its answer is not complete."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _parse(self, piece: bytes) -> bool:
        """False when that is the end of HTTP on this connection."""
        self._begun = True
        if self._stage is _Stage.NEXT:
            self._stage = _Stage.HEAD
        self._piece_body = 0
        framing = self._framing
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._upgrade()
            return False
        except httptools.HttpParserError:
            self._refuse(self._fault or http.HTTPStatus.BAD_REQUEST)
            return False
        if self._framing >= framing:  # else a request began in this piece
            self._framing += len(piece) - self._piece_body
        if self._framing > HEAD_BYTES:
            self._refuse(_LINE_TOO_LONG if len(self.url) * 2 > HEAD_BYTES else _FIELDS_TOO_LARGE)
            return False
        return not self.transport.is_closing()

    # What the parser found

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._framing = 0
        self._stage = _Stage.HEAD

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage is not _Stage.HEAD:
            return  # a trailer, which nobody reads (RFC 9110, 6.5.1)
        if len(self.headers) >= HEADER_COUNT:
            self._fault = _FIELDS_TOO_LARGE
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._stage = _Stage.BODY

    def on_body(self, body: bytes) -> None:
        self._piece_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stage = _Stage.NOTHING if self._unanswered() else _Stage.NEXT

    def _upgrade(self) -> None:
        if not self._should_upgrade():
            # The parser reads no more of this connection; uvicorn would leave it open, deaf.
            self.cycle.keep_alive = False
            self._stage = _Stage.NOTHING
            self.flow.choke()
            self._wait()
        elif self._is_answering():
            self._refuse(http.HTTPStatus.BAD_REQUEST)  # two answers at once
        else:
            self._forget_times()
            self.handle_websocket_upgrade()
            cast(_HasSlot, self.transport.get_protocol()).slot = self.slot
            self.slot.settle()

    # Answers

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._linger()
            return
        if self._stage is _Stage.NOTHING and not self.pipeline and self.timeout_keep_alive_task is not None:
            self._stage = _Stage.NEXT
        rest, self._unfed = self._unfed, b""
        if self.flow.choked and not self._is_answering():
            self.flow.free()
        if rest:
            self._feed(rest)
        else:
            self._wait()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._linger()

    def _refuse(self, status: http.HTTPStatus) -> None:
        """Answer and end; where another answer is on its way, only end."""
        log.debug("request_refused", status=int(status), address=self.slot.address)
        cycle = self._unanswered()
        if self.pipeline or (cycle is not None and cycle.response_started):
            self.transport.abort()
            return
        if cycle is not None:  # the application hears of it, and answers no more
            cycle.disconnected = True
            cycle.message_event.set()
        self._stage = _Stage.END
        self._forget_times()
        self.transport.write(refusal(status, self.config.encoded_headers))
        if self.transport.can_write_eof():
            self.flow.choked = False
            self.flow.resume_reading()
            self.transport.write_eof()
        else:
            self.transport.close()
        self._linger()

    # Times

    def _wait(self) -> None:
        """Bound the time of what is waited for now. One that runs for it runs on: no single byte buys another."""
        stage = _Stage.NOTHING if self._is_answering() else self._stage
        if stage is _Stage.NOTHING:
            self.slot.settle()
        else:
            self.slot.wait()
        if stage is self._timed:
            return
        self._timed = stage
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if stage in self._times:
            self._deadline = self.loop.call_later(self._times[stage], self._expire)
        elif stage is _Stage.NEXT and self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _expire(self) -> None:
        self._deadline = None
        if self._begun:
            self._refuse(http.HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()
            self._linger()

    def _linger(self) -> None:
        """Closing: what waits may still be written, for so long."""
        if self._closing is None:
            self._closing = self.loop.call_later(LINGER, self.transport.abort)

    def _forget_times(self) -> None:
        self._unset_keepalive_if_required()
        for timer in (self._deadline, self._stall, self._closing):
            if timer is not None:
                timer.cancel()
        self._deadline = self._stall = self._closing = None


_LINE_TOO_LONG = http.HTTPStatus.REQUEST_URI_TOO_LONG
_FIELDS_TOO_LARGE = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
_REASONS = {
    http.HTTPStatus.BAD_REQUEST: "The request cannot be read as HTTP/1.1.",
    http.HTTPStatus.REQUEST_TIMEOUT: "The request did not arrive in time. Send it again.",
    _LINE_TOO_LONG: f"The address is longer than {HEAD_BYTES >> 10} KiB. Shorten it.",
    _FIELDS_TOO_LARGE: f"The headers are more than {HEADER_COUNT} or {HEAD_BYTES >> 10} KiB. Send less, as cookies.",
    http.HTTPStatus.SERVICE_UNAVAILABLE: "There are too many connections. Try again in a minute.",
}


def refusal(status: http.HTTPStatus, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The whole answer to a request that no application sees, with the ``headers`` of every answer."""
    body = f"{_REASONS[status]}\n".encode()
    head = (
        f"HTTP/1.1 {int(status)} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n"
    ).encode()
    return b"".join((head, *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body))
