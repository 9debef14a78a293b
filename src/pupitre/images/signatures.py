"""Signatures of manifests: beside the manifests in the store, so that who copies the store copies them too.

The publisher's key lies beside the store's folder and never in it: a store is copied to every host, and a host
must not be able to sign. It is made on first use, by whoever may write into the store.
"""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pupitre.domain.image import IMAGE_ID
from pupitre.domain.signed_manifest import MOST_TEXT, SignedManifest, public_text, sign, signature_fault
from pupitre.errors import PupitreError, SetupError
from pupitre.images.files import make_folder, write
from pupitre.pki.signing import ensure_key

log = structlog.get_logger(__name__)
LARGEST = 2 * MOST_TEXT


class _Kept(msgspec.Struct):
    """``signatures/<id>.json``."""

    key: str
    signature: str


def publisher(root: Path) -> Path:
    """The folder of the key that signs what is published into the store at ``root``."""
    return root.parent / f"{root.name}-publisher"


def trusted_keys(*folders: Path) -> frozenset[str]:
    """The publishers whose files (``*.pub``) are in these folders."""
    found: set[str] = set()
    for path in (path for folder in folders for path in folder.glob("*.pub")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.add(path.read_text().strip())
    return frozenset(found)


def sign_image(root: Path, image_id: str) -> None:
    """Sign the manifest as it is. Raises `OSError`, and `SetupError` where there can be no key."""
    text = (root / "manifests" / f"{image_id}.json").read_text()
    signed = sign(text, _ensure_publisher(publisher(root)))
    make_folder(root / "signatures")
    write(root / "signatures" / f"{image_id}.json", _Kept(signed.key, signed.signature))


def _ensure_publisher(folder: Path) -> Ed25519PrivateKey:
    """The key of this store's publisher, with its public half beside it."""
    path, public = folder / "publisher.key", folder / "publisher.pub"
    remedy = (
        f"Bring back {path}; if it is lost, rename {public.name} to former.pub, so that its images are still trusted,"
        f" and a new key is made."
    )
    if public.exists() and not path.exists():
        raise SetupError(f"The key {path} that signs images is missing, and {public} belongs to it.", remedy)
    key = ensure_key(path)
    if not public.exists():
        public.write_text(f"{public_text(key)}\n")
    elif public.read_text().strip() != public_text(key):
        raise SetupError(f"{path} signs images, and {public} belongs to another key.", remedy)
    return key


def ensure_signed(root: Path, images: Iterable[str] | None = None) -> list[str]:
    """Sign each manifest that has no signature of its own text, where it is ours; the ids of those that were signed.

    Images of earlier versions have none. Somebody else's signature that is good stays.
    """
    done = []
    for path in sorted((root / "manifests").glob("*.json")):
        if not IMAGE_ID.fullmatch(path.stem) or (images is not None and path.stem not in images):
            continue
        try:
            held = read_signed(root, path.stem)
            if (held is None or signature_fault(held)) and path.stat().st_uid == os.geteuid():
                sign_image(root, path.stem)
                done.append(path.stem)
        except (OSError, UnicodeDecodeError, PupitreError) as error:
            log.warning("image_not_signed", image=path.stem, reason=str(error))
    return done


def read_signed(root: Path, image_id: str) -> SignedManifest | None:
    """The manifest with its signature; None where one of them is missing or cannot be read."""
    try:
        text = _read(root / "manifests" / f"{image_id}.json")
        kept = msgspec.json.decode(_read(root / "signatures" / f"{image_id}.json"), type=_Kept)
        return msgspec.convert({"text": text, "key": kept.key, "signature": kept.signature}, SignedManifest)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError):
        return None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(LARGEST).decode()
