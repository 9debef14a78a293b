"""Exposure: settings with which browsers cannot reach the web, each with the remedy."""

from typing import NamedTuple
from urllib.parse import urlsplit

from pupitre.config import Settings
from pupitre.domain.origin import DEFAULT_PORTS, is_loopback


class Mismatch(NamedTuple):
    """A sentence for people, and the setting that mends it."""

    sentence: str
    remedy: str


def mismatches(settings: Settings) -> list[Mismatch]:
    """Settings that are good one by one, and with which browsers get pages without consoles, or nothing."""
    found: list[Mismatch] = []
    origin = urlsplit(settings.origin)
    here = is_loopback(origin.hostname or "")
    if settings.behind_proxy:
        if not settings.public_origin:
            found.append(Mismatch(
                f"A proxy passes requests on, but browsers have to open {settings.origin}.",
                'Set public_origin = "https://…" to what they open.',
            ))  # fmt: skip
        if not is_loopback(settings.portal_host) and "trusted_proxies" not in settings.model_fields_set:
            found.append(Mismatch(
                "A proxy on another machine is not trusted: all who come through it have its address.",
                'Set trusted_proxies = ["the proxy\'s address"].',
            ))  # fmt: skip
    elif settings.public_origin and not settings.tls_cert:
        port = origin.port or DEFAULT_PORTS[origin.scheme]
        if origin.scheme == "https":
            found.append(Mismatch(
                f"Browsers open {settings.origin}, but no proxy and no certificate makes it https.",
                "Set behind_proxy = true, or tls_cert and tls_key.",
            ))  # fmt: skip
        elif port != settings.portal_port:
            found.append(Mismatch(
                f"Browsers open {settings.origin}, but portal_port is {settings.portal_port}.",
                f"Set portal_port = {port}, or behind_proxy = true.",
            ))  # fmt: skip
    if settings.public_origin and not here and is_loopback(settings.portal_host) and not settings.behind_proxy:
        found.append(Mismatch(
            f"Browsers open {settings.origin}, but portal_host {settings.portal_host} is for this machine alone.",
            "Set behind_proxy = true, or portal_host with tls_cert and tls_key.",
        ))  # fmt: skip
    if origin.scheme == "http" and not here:
        found.append(Mismatch(
            f"Passwords travel to {settings.origin} as everybody can read them.",
            "Let the proxy speak TLS and set public_origin to https://….",
        ))  # fmt: skip
    return found
