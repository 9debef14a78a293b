"""A recipe makes an image from Debian packages; what it makes is kept until the recipe changes.

The recipe's digest, over its own source, is written in the manifest: a build of
what is already there answers at once and asks nobody.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pupitre.domain.image import ImageSpec
from pupitre.errors import ImageFault, NotFound, SetupError
from pupitre.images.manifest import Manifest
from pupitre.images.programs import require
from pupitre.images.progress import Progress, part, silent
from pupitre.images.signatures import ensure_signed
from pupitre.images.store import Build, ImageStore

SHARED = ("debian.py", "initramfs.py", "../cpio.py", "../modules.py")


@dataclass(frozen=True, slots=True)
class Made:
    """``spec`` names its files by the keys of ``files``."""

    spec: ImageSpec
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``make`` works in the folder it is given. ``source`` is the recipe's package folder."""

    id: str
    name: str
    description: str
    programs: tuple[str, ...]
    space_mib: int
    source: Path
    make: Callable[[Path, Progress], Made]

    def digest(self) -> str:
        """Changes with any file of the recipe."""
        digest = hashlib.sha256(self.id.encode())
        own = sorted(path for path in self.source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        for path in [*own, *(self.source.parent / name for name in SHARED)]:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()

    def is_built(self, store: ImageStore) -> bool:
        try:
            return store.manifest(self.id).recipe == self.digest()
        except (NotFound, ImageFault):  # a damaged one is made anew
            return False

    def build(self, store: ImageStore, progress: Progress = silent) -> Manifest:
        """The image, made unless it is there; one that an earlier version made is signed now.

        Raises `SetupError`, `ImageFault`.
        """
        if self.is_built(store):
            ensure_signed(store.root, [self.id])
            return store.manifest(self.id)
        with store.build(self.id, self.name, self.description) as build:
            if self.is_built(store):  # another builder was faster
                return store.manifest(self.id)
            return self._build(build, progress)

    def _build(self, build: Build, progress: Progress) -> Manifest:
        def told(step: str, fraction: float) -> None:
            build.progress(step, fraction)
            progress(step, fraction)

        require(*self.programs)
        free = shutil.disk_usage(build.folder).free >> 20
        if free < self.space_mib:
            raise SetupError(
                f"Building {self.id} takes {self.space_mib} MiB, and {build.folder} has {free} MiB free.",
                "Free some space, or move the images with PUPITRE_IMAGE_STORE.",
            )
        made = self.make(build.folder, part(told, 0.0, 0.97))
        return build.publish(made.spec, made.files, self.digest(), part(told, 0.97, 1.0))
