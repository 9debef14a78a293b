"""Warnings of each host as the cluster knows them, from each source: what it observes, and what the host says.

They stand in the host's row, so that pages and commands show them, and in the cluster's metrics.
"""

from prometheus_client import CollectorRegistry, Gauge

from pupitre.domain.warning import MOST_WARNINGS, HostWarning

Warnings = tuple[HostWarning, ...]


class HostWarnings:
    """In memory: after a start, each source says anew what it knows."""

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

    def of(self, host: str) -> Warnings:
        """From every source; of one code the first."""
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
