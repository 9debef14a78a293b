"""Asks one of our processes how it is, on its Unix socket."""

from pathlib import Path

import httpx2

from pupitre.runtime.unix_sockets import short
from pupitre.timings import OPS_ANSWER_LIMIT


def ask(path: Path, route: str) -> httpx2.Response:
    """The answer to ``/healthz``, ``/readyz`` or ``/metrics``. Raises `httpx2.TransportError`."""
    with (
        short(path.parent) as folder,
        httpx2.Client(transport=httpx2.HTTPTransport(uds=f"{folder}/{path.name}"), timeout=OPS_ANSWER_LIMIT) as client,
    ):
        return client.get(f"http://ops{route}")
