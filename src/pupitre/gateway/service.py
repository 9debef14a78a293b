"""Gateway: what all connections of one process share: keys, rules, figures; and how it dials a host."""

import asyncio
import ssl
import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from pupitre.config import Settings
from pupitre.domain import console_link
from pupitre.domain.ticket import Purpose, Ticket, TicketRefused
from pupitre.errors import MessageError, NoAnswer, PupitreError
from pupitre.gateway.admission import Admission
from pupitre.net.middleware import security_headers
from pupitre.net.splice import StreamEnd
from pupitre.pki import issuing
from pupitre.runtime.timeouts import timeout
from pupitre.timings import CONSOLE_DIAL_LIMIT


class ResumingContext(ssl.SSLContext):
    """Resumes the last TLS session with each host: the second console saves both sides' signatures.

    The event loops have no argument for a session, but both call `wrap_bio`.
    """

    sessions: dict[str, ssl.SSLSession]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        known = self.sessions.get(str(server_hostname))
        return super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or known)

    def remember(self, server_hostname: str, connection: ssl.SSLObject) -> None:
        """Keep the session of ``connection``, which has passed every check, for the next one."""
        if not connection.session_reused:  # reading `session` copies it, certificate and all
            session = connection.session
            if session is not None and session.has_ticket:
                self.sessions[server_hostname] = session


class HostRefused(PupitreError):
    """The host said no, and why; ``error`` is its code."""

    code = "host_refused"

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.error = error


class Gateway:
    """One gateway. It keeps nothing that another gateway would have to know."""

    def __init__(self, settings: Settings) -> None:
        """Raises `SetupError` when the certificate or the portal's public key is missing."""
        certificates = issuing.directory(settings, "gateway")
        self.served = settings.served
        self.proxies = settings.proxies
        self.security_headers = security_headers(settings)
        self.admission = Admission(issuing.load_ticket_verifier(certificates), frozenset(self.served.origins))
        self._certificates = certificates
        self.reload()
        self.registry = CollectorRegistry()
        self.opened = Counter("pupitre_consoles_opened", "Consoles opened", registry=self.registry)
        self.refused = Counter("pupitre_consoles_refused", "Requests refused", ["error"], registry=self.registry)
        self.open = Gauge("pupitre_consoles_open", "Consoles open now", registry=self.registry)

    def reload(self) -> None:
        """Dial with the certificate as it is now; open consoles stay. Raises `SetupError`, and changes nothing."""
        context = issuing.arm(ResumingContext(ssl.PROTOCOL_TLS_CLIENT), self._certificates, "gateway")
        context.sessions = {}  # what was agreed on with another authority is not resumed
        self._context = context

    def admit(self, text: str, purpose: Purpose, desktop: str, headers: Mapping[str, str]) -> Ticket:
        """The good ticket in ``text``. Raises `TicketRefused`."""
        return self.admission.admit(text, purpose, desktop, headers, now=time.time())

    async def dial(self, ticket: Ticket, text: str) -> StreamEnd:
        """A connection to the ticket's host that has accepted the ticket.

        Raises `TicketRefused` or `HostRefused` with the host's reason, `NoAnswer` when
        it cannot be reached or is not the host it should be.
        """
        end: StreamEnd | None = None
        name = issuing.host_dns_name(ticket.host)
        try:
            async with timeout(CONSOLE_DIAL_LIMIT):
                _, end = await asyncio.get_running_loop().create_connection(
                    StreamEnd,
                    ticket.address,
                    ticket.port,
                    ssl=self._context,
                    server_hostname=name,
                    ssl_shutdown_timeout=CONSOLE_DIAL_LIMIT,
                )
                end.send(console_link.encode(console_link.Hello(ticket=text)))
                reply = console_link.decode_reply(await end.read_line(console_link.MAX_LINE))
        except (OSError, MessageError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            if end is not None:
                end.transport.abort()
            raise NoAnswer(
                f"Host {ticket.host} cannot be reached: {str(error) or 'it did not answer in time'}."
            ) from error
        except asyncio.CancelledError:
            if end is not None:
                end.transport.abort()
            raise
        self._context.remember(name, end.transport.get_extra_info("ssl_object"))
        if reply.ok:
            return end
        end.finish()
        if reply.error == TicketRefused.code:
            raise TicketRefused(reply.reason)
        raise HostRefused(reply.error, reply.reason)

    async def picture(self, ticket: Ticket, text: str) -> bytes:
        """The desktop's screen as PNG. Raises as `dial` does."""
        end = await self.dial(ticket, text)
        try:
            async with timeout(CONSOLE_DIAL_LIMIT):
                (size,) = console_link.PICTURE_SIZE.unpack(await end.read_exactly(console_link.PICTURE_SIZE.size))
                if size > console_link.MAX_PICTURE:
                    raise MessageError(f"a picture of {size} bytes")
                return await end.read_exactly(size)
        except (OSError, MessageError) as error:
            raise NoAnswer(
                f"Host {ticket.host} broke off while it sent a picture: {str(error) or 'time is up'}."
            ) from error
        finally:
            end.finish()
