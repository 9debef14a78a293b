"""A manifest as its publisher signed it (Ed25519): whoever carries it can change nothing in it."""

import hashlib
from collections.abc import Collection
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MOST_TEXT = 16_384
"""Characters of a manifest; one has about a thousand."""
Signature = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{128}\Z")]
PublicKey = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class SignedManifest(msgspec.Struct, frozen=True):
    """``text`` is the manifest's file. ``key`` names who signed it: the public key itself, in hexadecimal."""

    text: Annotated[str, msgspec.Meta(max_length=MOST_TEXT)]
    key: PublicKey
    signature: Signature

    @property
    def digest(self) -> str:
        """Digest by which the manifest is known."""
        return digest_of(self.text)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half, as it stands in `SignedManifest.key` and in a publisher's file."""
    return key.public_key().public_bytes_raw().hex()


def sign(text: str, key: Ed25519PrivateKey) -> SignedManifest:
    return SignedManifest(text, public_text(key), key.sign(_signed(text)).hex())


def signature_fault(signed: SignedManifest, trusted: Collection[str] | None = None) -> str | None:
    """Fault of the signature, as a sentence; None for a good one.

    ``trusted``: the keys that count; without them, the one that it names itself.
    """
    if trusted is not None and signed.key not in trusted:
        return f"its publisher {signed.key[:16]} is not known: put the publisher.pub of its machine into pki/publishers"
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(signed.key)).verify(
            bytes.fromhex(signed.signature), _signed(signed.text)
        )
    except (InvalidSignature, ValueError):
        return "its signature is not of this manifest: run `pupitre image sign` where it was published"
    return None


def _signed(text: str) -> bytes:
    """No signature of something else can be taken for one of a manifest."""
    return b"pupitre manifest\0" + text.encode()
