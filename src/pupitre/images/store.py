"""The image store: a folder of read-only blobs, named by what they hold, and manifests that name them.

::

    blobs/sha256/<digest>   0444, never changed; an emulator of another user can read it
    manifests/<id>.json     what is published; only whole images, on disk before anyone is told
    signatures/<id>.json    its publisher's signature, see `pupitre.images.signatures`
    progress/<id>.json      a build under way, or why the last one failed
    work/<id>/              a build's own files, on the same file system; emptied by the next build
    notify/                 sockets of processes that wait for changes
    locks/                  one per image for its builders, one for who adds or removes blobs

Readers take no lock: a manifest is replaced by a rename, and names only blobs
that are there. Removing a blob does not disturb a guest that has it open.
"""

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pupitre.domain.image import (
    DIGEST,
    ID_RULE,
    IMAGE_ID,
    CopyState,
    Image,
    ImageCopy,
    ImageSpec,
    name_fault,
    spec_fault,
)
from pupitre.domain.text import shown
from pupitre.errors import ImageFault, Invalid, NotFound, PupitreError
from pupitre.images.build_state import BuildState, born, read_state
from pupitre.images.files import empty, lock, make_folder, sync_folder, write, write_passing
from pupitre.images.importing.faults import store_fault, store_faults
from pupitre.images.manifest import Manifest, read_manifest
from pupitre.images.progress import Progress, part, silent
from pupitre.images.signatures import ensure_signed
from pupitre.runtime.clock import now_ms
from pupitre.runtime.notifier import Notifier
from pupitre.timings import BLOB_ARRIVING

CHUNK = 1 << 20
DROPPED = 0
"""The time of change of a blob that an image was the last to name: nobody waits for it."""


class Build:
    """One build of an image, under its lock. `ImageStore.build` makes it."""

    def __init__(self, store: "ImageStore", state: BuildState, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._state = state

    def progress(self, step: str, fraction: float) -> None:
        """Kept in the store for who looks. Only what a person could see is written."""
        before = self._state
        if step != before.step or int(fraction * 100) != int(before.fraction * 100):
            self._state = replace(before, step=step, fraction=round(min(1.0, max(0.0, fraction)), 3))
            self._store._write_state(self._state)

    def publish(
        self, spec: ImageSpec, files: Mapping[str, Path], recipe: str | None = None, progress: Progress = silent
    ) -> Manifest:
        """``spec`` names its files by the keys of ``files``; published, it names them by their digests."""
        state = self._state
        manifest = Manifest(spec, state.name, state.description, now_ms(), recipe)
        return self._store.publish(manifest, files, progress)


class ImageStore:
    """See the module's header. All methods may be called by several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notifier = images_notifier(root)
        self._blobs = root / "blobs/sha256"
        self._manifests = root / "manifests"
        self._states = root / "progress"
        self._work = root / "work"
        self._locks = root / "locks"

    # Reading. Raises `SetupError` where the store cannot be used.

    def copies(self) -> list[ImageCopy]:
        """Every image that is here, on its way, being made, damaged, or failed to be made, by id."""
        with store_faults(self.root):
            ids = {image_id for folder in (self._manifests, self._states) for image_id in _ids(folder)}
            found = [self._copy(image_id) for image_id in sorted(ids)]
        return [copy for copy in found if copy]

    def manifest(self, image_id: str) -> Manifest:
        """Raises `NotFound`, `Invalid`, and `ImageFault` where it is damaged."""
        with store_faults(self.root):
            manifest = read_manifest(self._manifests / f"{_checked(image_id)}.json")
        if manifest is None:
            raise NotFound(f"There is no image {image_id}.")
        return manifest

    def spec(self, image_id: str) -> ImageSpec:
        """Specification that a host needs to boot it. Raises as `manifest` does."""
        return self.manifest(image_id).spec

    def blob(self, digest: str) -> Path:
        """Raises `NotFound` where it is not here."""
        path = self._blobs / digest
        if not DIGEST.fullmatch(digest) or path.is_symlink() or not path.is_file():
            raise NotFound(f"The image store has no blob {digest[:64]}.")
        return path

    # Changing

    @contextlib.contextmanager
    def build(
        self, image_id: str, name: str, description: str, again: str = "Build the image again."
    ) -> Iterator[Build]:
        """A build under the image's lock; waits for another builder of the same image.

        What it leaves: the published image, or the reason why not. Its folder is emptied either way.
        """
        _checked(image_id)
        if fault := name_fault(name, description):
            raise Invalid(fault)
        with store_faults(self.root), self._locked(image_id):
            folder = self._work / image_id
            empty(folder)
            self._collect_garbage()
            make_folder(folder)
            state = BuildState(
                image_id, name, description, now_ms(), os.getpid(), born(os.getpid()) or 0.0, "Starting",
                machine=os.uname().nodename, again=again,
            )  # fmt: skip
            build = Build(self, state, folder)
            try:
                self._write_state(state)
                yield build
            except BaseException as error:
                with contextlib.suppress(OSError, PupitreError):
                    empty(folder)  # first of all: on a full disk this makes room for the reason
                self._fail(build._state, error)
                raise
            else:
                (self._states / f"{image_id}.json").unlink(missing_ok=True)
            finally:
                empty(folder)
                self._notify()

    def publish(self, manifest: Manifest, files: Mapping[str, Path], progress: Progress = silent) -> Manifest:
        """Moves ``files`` (on the store's file system) in and writes the manifest: all or nothing, on disk when told.

        ``manifest.spec`` names its files by the keys of ``files``. Raises `Invalid` for what no manifest may say.
        """
        spec = manifest.spec
        if fault := spec_fault(spec) or name_fault(manifest.name, manifest.description):
            raise Invalid(fault)
        with store_faults(self.root):
            self._make_folders()
            total = sum(path.stat().st_size for path in files.values()) or 1
            digests, sizes, done = {}, {}, 0
            for key, path in files.items():
                size = path.stat().st_size
                digests[key] = _digest(path, part(progress, done / total, (done + size) / total))
                sizes[digests[key]] = size
                done += size
            published = replace(
                manifest,
                sizes=sizes,
                spec=replace(
                    spec,
                    disk=digests[spec.disk],
                    kernel=digests[spec.kernel] if spec.kernel else None,
                    initrd=digests[spec.initrd] if spec.initrd else None,
                ),
            )
            target = self._manifests / f"{spec.id}.json"
            with lock(self._locks / "blobs"):
                for key, path in files.items():
                    path.chmod(0o444)
                    path.rename(self._blobs / digests[key])
                sync_folder(self._blobs)
                before = _digests_in(target)
                write(target, published)
                self._drop(before - set(published.blobs()))
            ensure_signed(self.root, [spec.id])
        self._notify()
        return published

    def remove(self, image_id: str) -> None:
        """Takes the image away, and the blobs that only it needed. Raises `NotFound`, `Conflict`."""
        _checked(image_id)
        with (
            store_faults(self.root),
            self._locked(image_id, wait=f"The image {image_id} is being built. Try again later."),
        ):
            known = [folder for folder in (self._manifests, self._states) if (folder / f"{image_id}.json").exists()]
            if not known:
                raise NotFound(f"There is no image {image_id}.")
            before = _digests_in(self._manifests / f"{image_id}.json")
            for folder in known:
                (folder / f"{image_id}.json").unlink(missing_ok=True)
                sync_folder(folder)
            (self.root / "signatures" / f"{image_id}.json").unlink(missing_ok=True)
            self._drop(before)
            empty(self._work / image_id)
            self._collect_garbage()
        self._notify()

    # Inside

    def _copy(self, image_id: str) -> ImageCopy | None:
        build, quiet = read_state(self._states / f"{image_id}.json")
        failure = build.failure(quiet) if build else None
        progress = build.fraction if build and not failure else None
        reason = failure or (build.step if build else None)
        try:
            manifest = read_manifest(path := self._manifests / f"{image_id}.json")
        except ImageFault as error:
            since = int(path.stat().st_mtime * 1000)
            return ImageCopy(Image(image_id, image_id, "", CopyState.FAILED, since, reason=shown(str(error))))
        if manifest:
            spec, state = manifest.spec, CopyState.READY
            if build is None and (missing := self._missing(manifest)):
                state, reason, progress = missing
            ready = Image(
                image_id, manifest.name, manifest.description, state, manifest.created,
                spec.memory_mib, spec.vcpus, progress, _reason(reason),
            )  # fmt: skip
            return ImageCopy(ready, spec if state is CopyState.READY else None)
        if build:
            state = CopyState.FAILED if failure else CopyState.FETCHING
            name, description = shown(build.name, 255), shown(build.description)
            return ImageCopy(
                Image(image_id, name, description, state, build.started, progress=progress, reason=_reason(reason))
            )
        return None

    def _missing(self, manifest: Manifest) -> tuple[CopyState, str, float | None] | None:
        """State of an image that was copied here and lacks something: its state, the reason, how much has come."""
        here = total = 0
        whole = True
        for digest in manifest.blobs():
            try:
                found = (self._blobs / digest).lstat()
            except FileNotFoundError:
                found = None
            size = found.st_size if found and stat.S_ISREG(found.st_mode) else 0
            wanted = manifest.sizes.get(digest)
            here, total = here + size, total + (size if wanted is None else wanted)
            whole &= found is not None and (wanted is None or size == wanted)
            if found and os.geteuid() == 0 and not found.st_mode & stat.S_IROTH:
                reason = f"Guests may not read {self._blobs / digest}: chmod a+r mends it."
                return CopyState.FAILED, reason, None
        if whole:
            return None
        reason = f"Its files are not all here: {here >> 20} of {total >> 20} MiB."
        return CopyState.FETCHING, reason, min(here / total, 1.0) if total else None

    def _write_state(self, state: BuildState) -> None:
        write_passing(self._states / f"{state.id}.json", state)
        self._notify()

    def _fail(self, state: BuildState, error: BaseException) -> None:
        if isinstance(error, OSError):
            reason = str(store_fault(self.root, error))
        elif isinstance(error, PupitreError):
            reason = str(error)
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            reason = f"The build was stopped. {state.again}"
        else:
            reason = f"The build failed: {str(error) or type(error).__name__}."
        # A disk may be gone altogether; then the state left behind names a process that is gone.
        with contextlib.suppress(OSError):
            self._write_state(replace(state, failed=shown(reason)))

    def _drop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._blobs / digest, (DROPPED, DROPPED), follow_symlinks=False)

    def _collect_garbage(self) -> None:
        """Blobs that no manifest names: of builds that died, and of images replaced or removed.

        A damaged manifest still names its blobs, and what has come lately may be named by one that comes later.
        """
        with lock(self._locks / "blobs"):
            named: set[str] = set()
            for image_id in _ids(self._manifests):
                named |= _digests_in(self._manifests / f"{image_id}.json")
            for blob in self._blobs.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    seen = blob.lstat()
                    is_fresh = seen.st_mtime != DROPPED and time.time() - seen.st_ctime < BLOB_ARRIVING
                    if blob.name not in named and not is_fresh:
                        blob.unlink()

    @contextlib.contextmanager
    def _locked(self, image_id: str, *, wait: str | None = None) -> Iterator[None]:
        self._make_folders()
        with lock(self._locks / f"{image_id}.lock", wait=wait):
            yield

    def _make_folders(self) -> None:
        for folder in (self._blobs, self._manifests, self._states, self._work, self._locks):
            make_folder(folder)

    def _notify(self) -> None:
        self.notifier.notify()


def images_notifier(root: Path) -> Notifier:
    """Notifier of every change of the store at ``root``, for all hosts that share it."""
    return Notifier(root / "notify", "images")


def _checked(image_id: str) -> str:
    if not IMAGE_ID.fullmatch(image_id):
        raise Invalid(ID_RULE)
    return image_id


def _ids(folder: Path) -> list[str]:
    """Ids of the images that have a file in ``folder``; files of other people there are not counted."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [name[:-5] for name in names if name.endswith(".json") and IMAGE_ID.fullmatch(name[:-5])]


def _digests_in(manifest: Path) -> set[str]:
    """All that a manifest may name, were it damaged."""
    try:
        return set(re.findall(DIGEST.pattern, manifest.read_text(errors="replace")))
    except FileNotFoundError:
        return set()


def _reason(text: str | None) -> str | None:
    return shown(text) if text else None


def _digest(path: Path, progress: Progress) -> str:
    """SHA-256 of the file, which is on disk afterwards."""
    size, done, digest = path.stat().st_size or 1, 0, hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress("Reading the image", done / size)
        os.fsync(file.fileno())
    return digest.hexdigest()
