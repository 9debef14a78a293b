"""The console's WebSocket, from the upgrade to the last byte, as a protocol of uvicorn.

uvicorn hands every upgrade to the class in ``Config(ws=…)``. Ours answers only the
console's path; it checks, dials the host, and joins the two connections, so that a
frame passes in one callback, without task, queue or copy of a message. No byte of
VNC is sent or received before gateway and host have both accepted the ticket.
"""

import asyncio
import http
import logging
import re
from typing import Any, ClassVar

import structlog
import uvicorn
from uvicorn.server import ServerState
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from pupitre.domain.console_link import CloseCode
from pupitre.domain.ticket import Purpose, TicketRefused
from pupitre.errors import NotFound, PupitreError
from pupitre.gateway import frames, problem
from pupitre.gateway.service import Gateway
from pupitre.net.middleware import last_word, refusal_document
from pupitre.net.splice import StreamEnd, join
from pupitre.timings import LINGER, WEBSOCKET_PACE, WEBSOCKET_PING

SUBPROTOCOL = "binary"
UNANSWERED = 2
"""So many signs of life in a row may be missing; then the viewer is given up."""
MANY = 16
"""Pieces of payload that are written one by one (each costs the TLS link a record), and control frames at once."""
_PATH = re.compile(r"/gateway/v1/console/([A-Za-z0-9-]{1,64})")
_HANDSHAKE_LOG = logging.getLogger("pupitre.gateway.handshake")
_HANDSHAKE_LOG.setLevel(logging.INFO)  # at debug level it would write the ticket

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def console_protocol(gateway: Gateway) -> type[asyncio.Protocol]:
    """The class for ``uvicorn.Config(ws=…)`` that serves the consoles of ``gateway``."""

    class BoundWebSocket(ConsoleWebSocket):
        shared = gateway

    return BoundWebSocket


class ConsoleWebSocket(StreamEnd):
    """A viewer's end of a console."""

    shared: ClassVar[Gateway]

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__()
        self._server = server_state
        self._reader = frames.FrameReader()
        self._opening: asyncio.Task[None] | None = None
        self._begun = False
        self._close_sent = False
        self._held = False  # not read, since the host has no room
        self._full = False  # what is for the viewer waits
        self._owes = False  # not read, since a pong for it waits too, or is made to
        self._pacer: asyncio.TimerHandle | None = None
        self._heard = True
        self._unanswered = 0
        self._pinger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._server.connections.add(self)  # type: ignore[arg-type]  # all uvicorn needs is shutdown()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._server.connections.discard(self)
        if self._opening is not None:
            self._opening.cancel()
        if self._pacer is not None:
            self._pacer.cancel()
        if self._pinger is not None:
            self._pinger.cancel()
            self.shared.open.dec()

    def shutdown(self) -> None:
        """Tell the page to come back: uvicorn stops."""
        if self.peer is None:
            super().finish()
        else:
            self._close(CloseCode.RESTARTING, "The gateway restarts.")
            self.peer.finish()

    # The upgrade

    def data_received(self, data: bytes) -> None:
        self._heard = True
        if self.peer is not None:
            self._pass_on(data)
        elif self._begun:
            super().data_received(data)
        else:
            self._begun = True
            self._upgrade(data)

    def _upgrade(self, data: bytes) -> None:
        handshake = ServerProtocol(subprotocols=[SUBPROTOCOL], logger=_HANDSHAKE_LOG)  # type: ignore[list-item]
        handshake.receive_data(data)
        request = next((event for event in handshake.events_received() if isinstance(event, Request)), None)
        if request is None:  # HTTP for uvicorn, and too long for websockets
            status = http.HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            self._answer(Response(status, status.phrase, Headers({"Connection": "close", "Content-Length": "0"}), b""))
            return
        if (refusal := self._host_refusal(request)) is not None:
            self._refuse(refusal[0], refusal_document(*refusal, path=request.path.partition("?")[0]))
            return
        response = handshake.accept(request)
        if response.status_code == http.HTTPStatus.SWITCHING_PROTOCOLS:
            self._opening = asyncio.get_running_loop().create_task(self._open(request, response))
        else:
            self._answer(response)

    async def _open(self, request: Request, response: Response) -> None:
        try:
            host = await self._admit_and_dial(request)
        except PupitreError as error:
            self.shared.refused.labels(error.code).inc()
            log.info("console_refused", error=error.code, reason=error.reason)
            self._refuse(problem.status_of(error), problem.document(error))
            return
        self._opening = None
        self.transport.write(response.serialize())
        join(self, host)
        self.shared.opened.inc()
        self.shared.open.inc()
        self._pinger = asyncio.get_running_loop().call_later(WEBSOCKET_PING, self._ask)

    async def _admit_and_dial(self, request: Request) -> StreamEnd:
        path = _PATH.fullmatch(request.path)
        if path is None:
            raise NotFound("There is no WebSocket here.")
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        offered = [
            word.strip() for line in request.headers.get_all("Sec-WebSocket-Protocol") for word in line.split(",")
        ]
        if len(offered) != 2 or offered[0] != SUBPROTOCOL:
            raise TicketRefused("Offer two subprotocols: binary, and the ticket.")
        ticket = self.shared.admit(offered[1], Purpose.CONSOLE, path[1], headers)
        return await self.shared.dial(ticket, offered[1])

    def _host_refusal(self, request: Request) -> tuple[int, str] | None:
        """Refusal of an unknown host, as `middleware.KnownHosts` refuses requests that are no upgrades."""
        hosts = request.headers.get_all("Host")
        peer, local = self.transport.get_extra_info("peername"), self.transport.get_extra_info("sockname")
        if peer and self.shared.proxies.trusts(peer[0]):
            forwarded = last_word(request.headers.get_all("X-Forwarded-Host"))
            hosts = [forwarded] if forwarded else hosts
        return self.shared.served.refusal(hosts, local[0] if local else None)

    def _refuse(self, status: int, document: bytes) -> None:
        headers = Headers(
            {"Content-Type": problem.MEDIA_TYPE, "Content-Length": str(len(document)), "Connection": "close"}
        )
        self._answer(Response(status, http.HTTPStatus(status).phrase, headers, document))

    def _answer(self, response: Response) -> None:
        for name, value in (*self.shared.security_headers, ("Cache-Control", "no-store")):
            response.headers[name] = value
        self.transport.write(response.serialize())
        super().finish()

    # The stream

    def send(self, data: bytes) -> None:
        if not self._close_sent:
            self.transport.writelines((frames.header(frames.BINARY, len(data)), data))

    def _pass_on(self, data: bytes) -> None:
        assert self.peer is not None
        try:
            payload = self._reader.feed(data)
        except frames.ProtocolFault as fault:
            self._close(fault.code, fault.reason)
            self.peer.finish()
            return
        if payload and not self._close_sent:
            self.peer.transport.writelines(payload if len(payload) <= MANY else (b"".join(payload),))
        if self._reader.controls and not self._close_sent:
            if self._reader.controls <= MANY:
                self._answer_ping()
            elif self._pacer is None:
                self._owe()
                self._pacer = asyncio.get_running_loop().call_later(WEBSOCKET_PACE, self._repay)
        if self._reader.closing is not None:
            self._close(int.from_bytes(self._reader.closing[:2]) if len(self._reader.closing) >= 2 else 1000, "")
            self.transport.close()
            self.peer.finish()

    def _answer_ping(self) -> None:
        """Answer the last ping; a viewer that reads none of its answers is not read on before it does."""
        if self._full:
            self._owe()
        elif self._reader.ping is not None:
            body, self._reader.ping = self._reader.ping, None
            self.transport.write(frames.header(frames.PONG, len(body)) + body)

    def _owe(self) -> None:
        self._owes = True
        super().hold()

    def _repay(self) -> None:
        """Read on, and answer what was asked, unless that still waits."""
        self._pacer = None
        if self._owes and not self._full:
            self._owes = False
            self._answer_ping()
            if not self._held:
                super().release()

    def finish(self, error: Exception | None = None) -> None:
        """The host's side ended: say so after the last byte, and give the viewer time to answer."""
        if error is None:
            self._close(CloseCode.ENDED, "The desktop ended its screen.")
        else:
            self._close(CloseCode.LINK_LOST, "The link to the desktop's host broke.")

    def _close(self, code: int, reason: str) -> None:
        if self._close_sent or self.lost:
            return
        self._close_sent = True
        self._owes = False
        self.transport.write(frames.close(code, reason))
        self.release()
        self._linger = asyncio.get_running_loop().call_later(LINGER, self.transport.abort)

    # Signs of life

    def hold(self) -> None:
        self._held = True
        super().hold()

    def release(self) -> None:
        self._held = False
        if not self._owes:
            super().release()

    def pause_writing(self) -> None:
        self._full = True
        super().pause_writing()

    def resume_writing(self) -> None:
        self._full = False
        super().resume_writing()
        if self._pacer is None:
            self._repay()

    def _ask(self) -> None:
        """Ping a silent viewer; give up one that stayed silent. One that we do not read cannot be heard."""
        assert self._pinger is not None
        self._unanswered = 0 if self._heard or self._held else self._unanswered + 1
        if self._unanswered >= UNANSWERED:
            self._close(CloseCode.VIEWER_GONE, "The viewer did not answer.")
            if self.peer is not None:
                self.peer.finish()
            return
        self._heard = False
        if not (self._close_sent or self._full):
            self.transport.write(frames.header(frames.PING, 0))
        self._pinger = asyncio.get_running_loop().call_later(WEBSOCKET_PING, self._ask)
