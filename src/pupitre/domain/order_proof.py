"""An order's proof: the cluster's signature (Ed25519) under what it ordered of one host, and where it stood then.

A host keeps the proof and can show it later: to a cluster whose database has lost the desktop, and as evidence
that a database is from the past. Nobody but the cluster can make one, so a host's word alone adopts nothing.

Form: ``base64url(claims, msgpack).base64url(signature)``, no padding.
"""

import base64
import binascii

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pupitre.domain.bounds import Key, MemoryMib, Name, Number, Small, Vcpus

MOST_PROOF = 1024
"""Characters."""


class Ordered(msgspec.Struct, frozen=True, array_like=True):
    """Order to ``host`` when the cluster's changes stood at ``epoch`` and ``sequence``.

    The fields after ``desktop`` are those of a start. ``digest`` is of its disk. New fields go to the end.
    """

    host: Name
    epoch: Number
    sequence: Number
    desktop: Key
    boot: Small = 0
    owner: Key = ""
    image: Name = ""
    digest: Name = ""
    memory_mib: MemoryMib = 0
    vcpus: Vcpus = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Ordered)


def prove(ordered: Ordered, key: Ed25519PrivateKey) -> str:
    claims = _encoder.encode(ordered)
    return f"{_text(claims)}.{_text(key.sign(claims))}"


def proven(proof: str, key: Ed25519PublicKey, *, host: str) -> Ordered | None:
    """Order that ``key`` has signed for ``host``; None for anything else."""
    claims, _, signature = proof[:MOST_PROOF].partition(".")
    try:
        body = _bytes(claims)
        key.verify(_bytes(signature), body)
        ordered = _decoder.decode(body)
    except (binascii.Error, ValueError, InvalidSignature, msgspec.MsgspecError):
        return None
    return ordered if ordered.host == host else None


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
