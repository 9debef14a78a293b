"""Warnings of each host as the cluster knows them, from each source: what it observes, and what the host says.

They stand in the host's row, so that pages and commands show them, and in the cluster's metrics.
"""

from prometheus_client import CollectorRegistry, Gauge

from pupitre.domain.bounds import MOST_GUESTS, MOST_IMAGES
from pupitre.domain.report import LeftOut
from pupitre.domain.warning import MOST_WARNINGS, HostWarning, WarningCode, kind_of, warn
from pupitre.wire.messages import Report

Warnings = tuple[HostWarning, ...]


class HostWarnings:
    """Warnings of each host, in memory: after a start, each source says anew what it knows."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._by_host: dict[str, dict[str, Warnings]] = {}
        self._shown: dict[str, Warnings] = {}
        self._gauge = Gauge(
            "pupitre_host_warning", "Warnings of hosts: each one's number, or 1", ["host", "code"], registry=registry
        )

    def put(self, host: str, source: str, warnings: Warnings) -> bool:
        """Replace what ``source`` says of the host; whether that changes anything."""
        sources = self._by_host.setdefault(host, {})
        if sources.get(source, ()) == warnings:
            return False
        sources[source] = warnings
        self._show(host)
        return True

    def report(self, report: Report) -> Warnings:
        """The host's warnings, now that this report of it can be used."""
        host = report.host
        self.put(host, "reports", ())
        if report.warnings is not None:
            claims = [one for one in report.warnings if (kind := kind_of(one.code)) and kind.by_host]
            self.put(host, "host", tuple(claims))
        left_out = {one.kind: one for one in report.left_out}
        said = {
            "desktops": report.full,
            "copies": report.copies is not None,
            "findings": report.full or bool(report.findings),
            "facts": report.facts is not None,
            "heard": report.full,
            "warnings": report.warnings is not None,
        }
        for part, is_said in said.items():
            if part in left_out or is_said:
                self.put(host, part, (_left_out(left_out[part]),) if part in left_out else ())
        return self.of(host)

    def of(self, host: str) -> Warnings:
        """Warnings of a host from every source; of one code the first."""
        every = {one.code: one for said in reversed(self._by_host.get(host, {}).values()) for one in reversed(said)}
        return tuple(sorted(every.values(), key=lambda one: one.code))[:MOST_WARNINGS]

    def forget(self, host: str) -> None:
        """It is no longer registered."""
        self._by_host.pop(host, None)
        self._show(host)

    def _show(self, host: str) -> None:
        before, now = self._shown.pop(host, ()), self.of(host)
        for code in {one.code for one in before} - {one.code for one in now}:
            self._gauge.remove(host, code)
        for one in now:
            self._gauge.labels(host, one.code).set(one.number or 1)
        if now:
            self._shown[host] = now


def _left_out(part: LeftOut) -> HostWarning:
    match part.kind:
        case "desktops" if part.there > MOST_GUESTS:
            return warn(WarningCode.TOO_MANY_GUESTS, part.there)
        case "copies" if part.there > MOST_IMAGES:
            return warn(WarningCode.TOO_MANY_IMAGES, part.there)
    return warn(WarningCode.PARTS_REFUSED, part.unused, f"{part.kind}: {part.reason}")
