"""A published image, as a file of the image store names it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pupitre.domain.image import DIGEST, ImageSpec, name_fault, spec_fault
from pupitre.errors import ImageFault

LARGEST = 1 << 20
"""Bytes; a manifest has about a thousand."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """``created`` is in Unix milliseconds; ``recipe`` is the digest of what made it.

    ``sizes`` are the bytes of the blobs, by digest: what is still being copied here is smaller.
    """

    spec: ImageSpec
    name: str
    description: str
    created: int
    recipe: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    def blobs(self) -> tuple[str, ...]:
        """The digests that it names."""
        return tuple(filter(None, (self.spec.disk, self.spec.kernel, self.spec.initrd)))


def manifest_fault(manifest: Manifest, image_id: str) -> str | None:
    """Why no desktop can be started from a manifest that was read, in one sentence."""
    if manifest.spec.id != image_id:
        return f"it is of the image {manifest.spec.id[:64]!r}"
    if any(not DIGEST.fullmatch(digest) for digest in manifest.blobs()):
        return "it names a file that is no digest"
    if not 0 <= manifest.created < 1 << 62:
        return "its date is out of range"
    return spec_fault(manifest.spec) or name_fault(manifest.name, manifest.description)


def read_manifest(path: Path) -> Manifest | None:
    """Manifest of an image; None where there is none.

    Raises `ImageFault` for one that is damaged or asks for what no image may.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    fault: object = f"it is larger than {LARGEST >> 20} MiB"
    if len(data) <= LARGEST:
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
            fault = manifest_fault(manifest, path.stem)
            if fault is None:
                return manifest
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            fault = error
    raise ImageFault(
        f"{path} cannot be used: {str(fault).rstrip('.')}."
        f" Build or import the image again, or take it away: pupitre image remove {path.stem}"
    )
