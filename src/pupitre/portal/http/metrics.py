"""Counters of one web process, in its own registry so that several may live in one test."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "pupitre_portal_request_seconds",
            "Time to the first byte of an answer.",
            ["method", "route", "status"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
        )
        self.listeners = Gauge("pupitre_portal_event_listeners", "Open streams of live events.", registry=self.registry)
        self.resyncs = Counter(
            "pupitre_portal_event_resyncs", "Streams that were too slow and began anew.", registry=self.registry
        )
        self.failed_sign_ins = Counter(
            "pupitre_portal_failed_sign_ins", "Sign-ins refused for a wrong name or password.", registry=self.registry
        )
