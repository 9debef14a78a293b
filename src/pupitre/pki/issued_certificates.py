"""Certificates that the authority has issued last: ``pki/ca/issued.json``, one entry for each role.

Certificates on other machines are known here alone: a rotation must not end before each of them is replaced,
and a renewal keeps the addresses that were asked for. Written in `authority.lock`.
"""

import datetime
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cryptography import x509

from pupitre.config import Settings
from pupitre.pki import authority


def note(
    settings: Settings, role: str, certificate: x509.Certificate, addresses: Collection[str], *, carried: bool
) -> None:
    """``carried``: it was put into a folder for another machine."""
    entries = _entries(settings)
    entries[role] = {
        "expires": certificate.not_valid_after_utc.isoformat(),
        "authority": _issuer(certificate),
        "addresses": list(addresses) or entries.get(role, {}).get("addresses", []),
        "carried": carried,
    }
    authority.write(_path(settings), json.dumps(entries, indent=2).encode() + b"\n")


def addresses(settings: Settings, role: str) -> list[str]:
    """The further addresses in the last certificate of ``role``."""
    return [str(address) for address in _entries(settings).get(role, {}).get("addresses", ())]


def to_carry(settings: Settings) -> list[str]:
    """The roles of other machines whose last certificate another authority has signed than the one that signs now.

    What has expired is not among them: it is nobody's any more.
    """
    signer = authority.signer(settings)[0].subject.rfc4514_string()
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return sorted(
        role
        for role, entry in _entries(settings).items()
        if entry["carried"] and entry["authority"] != signer and entry["expires"] > now
    )


def carried(settings: Settings) -> list[str]:
    """The roles whose last certificate went to another machine."""
    return sorted(role for role, entry in _entries(settings).items() if entry["carried"])


def _issuer(certificate: x509.Certificate) -> str:
    return certificate.issuer.rfc4514_string()


def _path(settings: Settings) -> Path:
    return authority.folder(settings) / "issued.json"


def _entries(settings: Settings) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(_path(settings).read_bytes())
    except (OSError, ValueError):  # none yet, or damaged: it is written anew with the next certificate
        return {}
    return entries if isinstance(entries, dict) else {}
