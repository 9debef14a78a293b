"""The image store: a folder of read-only blobs, named by what they hold, and manifests that name them.

::

    blobs/sha256/<digest>   0444, never changed; an emulator of another user can read it
    manifests/<id>.json     what is published; only whole images, on disk before anyone is told
    progress/<id>.json      a build under way, or why the last one failed
    work/<id>/              a build's own files, on the same file system; emptied by the next build
    bells/                  who wants to hear of changes
    locks/                  one per image for its builders, one for who adds or removes blobs

Readers take no lock: a manifest is replaced by a rename, and names only blobs
that are there. Removing a blob does not disturb a guest that has it open.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from pupitre.bell import Bell
from pupitre.clock import now_ms
from pupitre.domain.image import CopyState, Image, ImageCopy, ImageSpec
from pupitre.errors import Conflict, ImageFault, Invalid, NotFound, PupitreError
from pupitre.images.programs import disk_full, find, run
from pupitre.images.progress import Progress, part, silent

ID = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A published image. ``created`` is in Unix milliseconds; ``recipe`` is the digest of what made it."""

    spec: ImageSpec
    name: str
    description: str
    created: int
    recipe: str | None = None


@dataclass(frozen=True, slots=True)
class BuildState:
    """A build's last word. ``born`` is the builder's start time, so that a reused pid is told apart."""

    id: str
    name: str
    description: str
    started: int
    pid: int
    born: float
    step: str = ""
    fraction: float = 0.0
    failed: str | None = None

    def failure(self) -> str | None:
        """Why it failed; None while its process lives."""
        if self.failed is None and _born(self.pid) != self.born:
            return f"The build ended half-way: its process {self.pid} is gone. Build the image again."
        return self.failed


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
        self.bell = bell(root)
        self._blobs = root / "blobs/sha256"
        self._manifests = root / "manifests"
        self._states = root / "progress"
        self._work = root / "work"
        self._locks = root / "locks"

    # Reading

    def copies(self) -> list[ImageCopy]:
        """Every image that is here, being made, or failed to be made, by id."""
        ids = {path.stem for folder in (self._manifests, self._states) for path in folder.glob("*.json")}
        found = (self._copy(image_id) for image_id in sorted(ids))
        return [copy for copy in found if copy]

    def manifest(self, image_id: str) -> Manifest:
        """Raises `NotFound`, `Invalid`."""
        manifest = _read(self._manifests / f"{_checked(image_id)}.json", Manifest)
        if manifest is None:
            raise NotFound(f"There is no image {image_id}.")
        return manifest

    def spec(self, image_id: str) -> ImageSpec:
        """What a host needs to boot it. Raises `NotFound`, `Invalid`."""
        return self.manifest(image_id).spec

    def blob(self, digest: str) -> Path:
        """Raises `NotFound` where it is not here."""
        path = self._blobs / digest
        if not DIGEST.fullmatch(digest) or path.is_symlink() or not path.is_file():
            raise NotFound(f"The image store has no blob {digest[:64]}.")
        return path

    # Changing

    @contextlib.contextmanager
    def build(self, image_id: str, name: str, description: str) -> Iterator[Build]:
        """A build under the image's lock; waits for another builder of the same image.

        What it leaves: the published image, or the reason why not. Its folder is emptied either way.
        """
        _checked(image_id)
        self._make_folders()
        with _lock(self._locks / f"{image_id}.lock"):
            folder = self._work / image_id
            _empty(folder)
            self._collect_garbage()
            _make_folder(folder)
            started = now_ms()
            state = BuildState(image_id, name, description, started, os.getpid(), _born(os.getpid()) or 0.0, "Starting")
            build = Build(self, state, folder)
            try:
                self._write_state(state)
                yield build
            except BaseException as error:
                self._fail(build._state, error)
                if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                    raise disk_full(self.root) from error
                raise
            else:
                (self._states / f"{image_id}.json").unlink(missing_ok=True)
            finally:
                _empty(folder)
                self._ring()

    def publish(self, manifest: Manifest, files: Mapping[str, Path], progress: Progress = silent) -> Manifest:
        """Moves ``files`` (on the store's file system) in and writes the manifest: all or nothing, on disk when told.

        ``manifest.spec`` names its files by the keys of ``files``.
        """
        _checked(manifest.spec.id)
        self._make_folders()
        total = sum(path.stat().st_size for path in files.values()) or 1
        digests, done = {}, 0
        for key, path in files.items():
            size = path.stat().st_size
            digests[key] = _digest(path, part(progress, done / total, (done + size) / total))
            done += size
        spec = manifest.spec
        published = replace(
            manifest,
            spec=replace(
                spec,
                disk=digests[spec.disk],
                kernel=digests[spec.kernel] if spec.kernel else None,
                initrd=digests[spec.initrd] if spec.initrd else None,
            ),
        )
        with _lock(self._locks / "blobs"):
            for key, path in files.items():
                path.chmod(0o444)
                path.rename(self._blobs / digests[key])
            _sync_folder(self._blobs)
            _write(self._manifests / f"{spec.id}.json", published)
        self._ring()
        return published

    def remove(self, image_id: str) -> None:
        """Takes the image away, and the blobs that only it needed. Raises `NotFound`, `Conflict`."""
        _checked(image_id)
        self._make_folders()
        with _lock(self._locks / f"{image_id}.lock", wait=f"The image {image_id} is being built. Try again later."):
            known = [path for path in (self._manifests, self._states) if (path / f"{image_id}.json").exists()]
            if not known:
                raise NotFound(f"There is no image {image_id}.")
            for folder in known:
                (folder / f"{image_id}.json").unlink(missing_ok=True)
                _sync_folder(folder)
            _empty(self._work / image_id)
            self._collect_garbage()
        self._ring()

    # Inside

    def _copy(self, image_id: str) -> ImageCopy | None:
        manifest = _read(self._manifests / f"{image_id}.json", Manifest)
        build = _read(self._states / f"{image_id}.json", BuildState)
        failure = build.failure() if build else None
        progress = build.fraction if build and not failure else None
        reason = failure or (build.step if build else None)
        if manifest:
            spec = manifest.spec
            ready = Image(
                image_id, manifest.name, manifest.description, CopyState.READY, manifest.created,
                spec.memory_mib, spec.vcpus, progress, reason,
            )  # fmt: skip
            return ImageCopy(ready, spec)
        if build:
            state = CopyState.FAILED if failure else CopyState.FETCHING
            return ImageCopy(
                Image(image_id, build.name, build.description, state, build.started, progress=progress, reason=reason)
            )
        return None

    def _write_state(self, state: BuildState) -> None:
        _write(self._states / f"{state.id}.json", state, durable=False)
        self._ring()

    def _fail(self, state: BuildState, error: BaseException) -> None:
        if isinstance(error, PupitreError):
            reason = error.reason if not str(error) else str(error)
        elif isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            reason = str(disk_full(self.root))
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            reason = "The build was stopped. Build the image again."
        else:
            reason = f"The build failed: {str(error) or type(error).__name__}."
        # On a full disk even this may fail; then the state left behind names a process that is gone.
        with contextlib.suppress(OSError):
            self._write_state(replace(state, failed=reason))

    def _collect_garbage(self) -> None:
        """Blobs that no manifest names: of builds that died, and of images replaced or removed."""
        with _lock(self._locks / "blobs"):
            named: set[str | None] = set()
            for path in self._manifests.glob("*.json"):
                if manifest := _read(path, Manifest):
                    named |= {manifest.spec.disk, manifest.spec.kernel, manifest.spec.initrd}
            for blob in self._blobs.iterdir():
                if blob.name not in named:
                    blob.unlink(missing_ok=True)

    def _make_folders(self) -> None:
        try:
            for folder in (self._blobs, self._manifests, self._states, self._work, self._locks):
                _make_folder(folder)
        except PermissionError as error:
            raise ImageFault(f"The image store {self.root} cannot be written: {error.strerror}.") from error

    def _ring(self) -> None:
        self.bell.ring()


def bell(root: Path) -> Bell:
    """Rung at every change of the store at ``root``, for the hosts of all who share it."""
    return Bell(root / "bells", "images")


def _checked(image_id: str) -> str:
    if not ID.fullmatch(image_id):
        raise Invalid("An image's id is 1 to 48 small letters, digits and hyphens, and begins with no hyphen.")
    return image_id


def _born(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def _make_folder(folder: Path) -> None:
    """With its parents, and open to read whatever the umask: the emulator may run as another user."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


@contextlib.contextmanager
def _lock(path: Path, *, wait: str | None = None) -> Iterator[None]:
    """An exclusive lock that ends with the process. With ``wait``: raises `Conflict` with it instead of waiting."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if wait else 0))
        except BlockingIOError as error:
            raise Conflict(str(wait)) from error
        yield


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise ImageFault(f"{path} is damaged ({error}). Remove it, then build or import the image again.") from error


def _write(path: Path, value: object, *, durable: bool = True) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(value), indent=2))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def _empty(folder: Path) -> None:
    """Removes the folder, files of subordinate users included (an ordinary user's mmdebstrap leaves such)."""
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        if os.geteuid() == 0 or find("mmdebstrap") is None:
            raise
        run(["mmdebstrap", "--unshare-helper", "rm", "-rf", folder])
