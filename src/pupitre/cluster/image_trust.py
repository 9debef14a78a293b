"""Trust in images: the cluster believes what a publisher it knows has signed, and nothing that a host says.

A host says which manifests it holds, by digest, and shows those that the cluster may not know. In memory: after a
start each host shows what it has.
"""

from pathlib import Path

import msgspec
import structlog

from pupitre.config import Settings
from pupitre.domain.image import IMAGE_ID, CopyState, Image, ImageSpec
from pupitre.domain.report import CopyReport
from pupitre.domain.signed_manifest import SignedManifest, signature_fault
from pupitre.domain.warning import HostWarning, WarningCode, warn
from pupitre.images.manifest import Manifest, manifest_fault
from pupitre.images.signatures import publisher, trusted_keys
from pupitre.timings import IMAGES_RECHECK
from pupitre.wire.messages import Report

log = structlog.get_logger(__name__)


class ImageTrust:
    def __init__(self, settings: Settings) -> None:
        self._folders: tuple[Path, ...] = (publisher(settings.images_dir), settings.pki_dir / "publishers")
        self._manifests: dict[str, Manifest] = {}
        self._refused: dict[str, float] = {}

    def learn(self, manifests: tuple[SignedManifest, ...]) -> dict[str, str]:
        """Take what is signed as it should be; why the others are not, by digest."""
        unknown = [signed for signed in manifests if signed.digest not in self._manifests]
        if not unknown:
            return {}
        keys = trusted_keys(*self._folders)
        faults: dict[str, str] = {}
        for signed in unknown:
            found = _manifest(signed, keys)
            if isinstance(found, Manifest):
                self._manifests[signed.digest] = found
            else:
                faults[signed.digest] = found
        return faults

    def copies(
        self, report: Report, faults: dict[str, str], *, loop_time: float
    ) -> tuple[list[tuple[Image, ImageSpec | None]], tuple[HostWarning, ...]]:
        """The host's images in the words of their publishers, and what people are told of the rest."""
        taken: list[tuple[Image, ImageSpec | None]] = []
        refused: list[str] = []
        for copy in report.copies or ():
            image = copy.image
            manifest = self._manifests.get(copy.manifest)
            if not IMAGE_ID.fullmatch(image.id) or (manifest and manifest.spec.id != image.id):
                refused.append(f"{image.id[:48]!r}: its manifest is of another image")
            elif manifest:
                taken.append(_published(copy, manifest))
            elif image.state in (CopyState.FETCHING, CopyState.FAILED):
                taken.append((_nameless(image), None))
            else:
                why = faults.get(copy.manifest) or "it is not signed: run `pupitre image sign` where it was published"
                refused.append(f"{image.id}: {why}")
        self._refused.pop(report.host, None)
        if not refused:
            return taken, ()
        self._refused[report.host] = loop_time
        return taken, (warn(WarningCode.IMAGES_REFUSED, len(refused), refused[0]),)

    def knows(self, report: Report) -> bool:
        """Whether every manifest that the host holds is known."""
        return all(not copy.manifest or copy.manifest in self._manifests for copy in report.copies or ())

    def is_due(self, host: str, *, loop_time: float) -> bool:
        """Whether the host, some of whose images were refused, is to be asked for them again."""
        return loop_time - self._refused.get(host, loop_time) >= IMAGES_RECHECK

    def forget(self, host: str) -> None:
        self._refused.pop(host, None)


def _manifest(signed: SignedManifest, keys: frozenset[str]) -> Manifest | str:
    """Manifest that was signed, or why it is not believed."""
    if fault := signature_fault(signed, keys):
        return fault
    try:
        manifest = msgspec.json.decode(signed.text, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        return f"its manifest is damaged: {error}"
    return manifest_fault(manifest, manifest.spec.id) or manifest


def _published(copy: CopyReport, manifest: Manifest) -> tuple[Image, ImageSpec | None]:
    spec = manifest.spec
    image = Image(
        spec.id,
        manifest.name,
        manifest.description,
        copy.image.state,
        manifest.created,
        spec.memory_mib,
        spec.vcpus,
        copy.image.progress,
    )
    return image, spec if image.state is CopyState.READY else None


def _nameless(image: Image) -> Image:
    """One that is being made, or could not be: nobody has signed a word about it yet."""
    reason = "see `pupitre image list` on its host" if image.state is CopyState.FAILED else "It is being made"
    return Image(image.id, image.id, "", image.state, image.since, progress=image.progress, reason=reason)
