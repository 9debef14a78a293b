"""The certificates of a running process: renewed in time, reloaded when their files change, spoken of before they end.

What stays true: a new certificate is used for connections that begin after it came, and no open connection ends
for it; files that cannot be used change nothing. Renewal needs the authority's key on this machine; elsewhere
whoever copies a new directory here is noticed within half a minute.
"""

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from cryptography import x509
from prometheus_client import CollectorRegistry, Gauge

from pupitre.config import Settings
from pupitre.domain.certificate import days_left, is_near_its_end, look_again, threshold
from pupitre.errors import SetupError
from pupitre.pki import authority, issuing

log = structlog.get_logger(__name__)

RETRY_RENEWAL = 1 / 100
"""Part of a certificate's life between two tries to renew it, after one that failed."""
_DAY = datetime.timedelta(days=1)
Stamp = tuple[tuple[int, int, int] | None, ...]


def utc_now() -> datetime.datetime:
    """The wall clock, by which certificates go."""
    return datetime.datetime.now(datetime.UTC)


@dataclass(slots=True)
class _Watched:
    """One certificate: ``name`` is for people, ``role`` is None for one that others issue and renew."""

    name: str
    certificate: Path
    files: tuple[Path, ...]
    on_change: Callable[[], None]
    role: str | None
    stamp: Stamp = ()
    held: x509.Certificate | None = None
    told: int | None = None
    retry_after: datetime.datetime = field(default_factory=utc_now)
    spoken: datetime.datetime = field(default_factory=utc_now)


class Credentials:
    """`keep` each certificate at start, then `watch`. ``registry`` gets the days that each has left."""

    def __init__(
        self, settings: Settings, registry: CollectorRegistry, *, on_look: Callable[[], None] = lambda: None
    ) -> None:
        """``on_look`` is called after each look at the files."""
        self._settings = settings
        self._on_look = on_look
        self._watched: list[_Watched] = []
        self._gauge = Gauge(
            "pupitre_certificate_days_left",
            "Days until a certificate expires; negative once it has",
            ["certificate"],
            registry=registry,
        )

    def keep(self, role: str, on_change: Callable[[], None] = lambda: None) -> None:
        """Renew the certificate of ``role`` if it is due. ``on_change`` loads it anew, and may raise `SetupError`.

        Raises `SetupError` when it is missing or outside its time.
        """
        folder = issuing.directory(self._settings, role)
        if folder.exists():
            issuing.renew_if_due(self._settings, role)
        files = (folder / "ca.crt", folder / f"{role}.crt", folder / f"{role}.key", folder / "ticket.pub")
        issuing.check_validity(folder / f"{role}.crt", role)
        self._add(_Watched(role, folder / f"{role}.crt", files, on_change, role))

    def keep_public(self, certificate: Path, key: Path) -> ssl.SSLContext:
        """TLS with the certificate that browsers see, which somebody else renews; it stays up to date by itself.

        Raises `SetupError` when the files are no pair, or outside their time.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def load() -> None:
            issuing.check_public(certificate, key)
            context.load_cert_chain(certificate, key)

        load()
        self._add(_Watched("web", certificate, (certificate, key), load, None))
        return context

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """`watch` beside the body."""
        task = asyncio.create_task(self.watch(), name="certificates")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def watch(self) -> None:
        """Renew and reload until cancelled."""
        while self._watched:
            await asyncio.sleep(min(look_again(_life(one).total_seconds()) for one in self._watched))
            for one in self._watched:
                await self._look(one)
            self._on_look()
        await asyncio.Event().wait()

    def near_its_end(self) -> list[tuple[str, float]]:
        """Certificates that people should know of, each with its days left."""
        return [(one.name, _left(one)) for one in self._watched if is_near_its_end(_left(one), _life(one) / _DAY)]

    def _add(self, one: _Watched) -> None:
        one.stamp, one.held = _stamp(one.files), issuing.load_certificate(one.certificate)
        self._watched.append(one)
        self._gauge.labels(certificate=one.name).set_function(lambda: _left(one))
        self._speak(one, always=True)

    async def _look(self, one: _Watched) -> None:
        if one.role is not None and self._is_due(one):
            try:
                await asyncio.to_thread(issuing.ensure_certificate, self._settings, one.role)
            except (SetupError, OSError) as error:
                one.retry_after = utc_now() + _life(one) * RETRY_RENEWAL
                log.warning("certificate_not_renewed", certificate=one.name, reason=str(error))
        stamp = _stamp(one.files)
        if stamp != one.stamp:
            one.stamp = stamp
            self._reload(one)
        self._speak(one)

    def _is_due(self, one: _Watched) -> bool:
        assert one.held is not None
        now = utc_now()
        return now >= max(one.retry_after, issuing.renewal_of(one.held)) and authority.is_here(self._settings)

    def _reload(self, one: _Watched) -> None:
        try:
            one.on_change()
            certificate = issuing.load_certificate(one.certificate)
        except SetupError as error:
            log.warning("certificate_unusable", certificate=one.name, reason=str(error))
            return
        one.held, one.told = certificate, None
        log.info("certificate_replaced", certificate=one.name, days_left=round(_left(one), 1))

    def _speak(self, one: _Watched, *, always: bool = False) -> None:
        """Once a day, and at each threshold."""
        left = _left(one)
        passed = threshold(left) if is_near_its_end(left, _life(one) / _DAY) else None
        if passed is not None and passed != one.told:
            one.told, one.spoken = passed, utc_now()
            remedy = f"pupitre pki issue {one.role}" if one.role else "renew it where it was issued"
            event = "certificate_expired" if left <= 0 else "certificate_expires_soon"
            log.warning(event, certificate=one.name, days_left=round(left, 1), remedy=remedy)
        elif always or utc_now() - one.spoken >= _DAY:
            one.spoken = utc_now()
            log.info("certificate_valid", certificate=one.name, days_left=round(left, 1))


def _left(one: _Watched) -> float:
    assert one.held is not None
    return days_left(one.held.not_valid_after_utc, utc_now())


def _life(one: _Watched) -> datetime.timedelta:
    assert one.held is not None
    return one.held.not_valid_after_utc - one.held.not_valid_before_utc


def _stamp(files: tuple[Path, ...]) -> Stamp:
    return tuple(_stamp_of(path) for path in files)


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
