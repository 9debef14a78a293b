"""Takes a stranger's image file into the store: copied first, then judged, so that what is kept is what was checked."""

import errno
import fcntl
import os
import re
from pathlib import Path
from typing import BinaryIO

from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import Conflict, HostileImage, Invalid, NotFound, SetupError
from pupitre.images.confine import check_image, image_info
from pupitre.images.header import MAX_VIRTUAL_BYTES, agreed_format, open_regular, read_header
from pupitre.images.progress import Progress, part, silent
from pupitre.images.store import CHUNK, ID, ImageStore, Manifest

DEFAULT_MEMORY_MIB = 2048
DEFAULT_VCPUS = 2
FICLONE = 0x40049409
"""ioctl of Linux: the target shares the source's blocks (ioctl_ficlone(2))."""
CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY}


def image_id(name: str) -> str:
    """The id that an image of this name gets. Raises `Invalid` where no letter or digit is left."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-")
    if not ID.fullmatch(slug):
        raise Invalid("An image's name needs a letter or a digit. Add --name.")
    return slug


def import_image(
    store: ImageStore,
    file: Path,
    *,
    name: str | None = None,
    disk_format: DiskFormat | None = None,
    memory_mib: int = DEFAULT_MEMORY_MIB,
    vcpus: int = DEFAULT_VCPUS,
    max_virtual_bytes: int = MAX_VIRTUAL_BYTES,
    progress: Progress = silent,
) -> Manifest:
    """The image as published. Raises `HostileImage`, `Invalid`, `Conflict`, `SetupError`; nothing is changed then."""
    with open_regular(file) as source:
        disk_format = disk_format or agreed_format(file, source)
        header = read_header(source, disk_format, max_virtual_bytes=max_virtual_bytes)
        shown = name or file.stem
        new_id = image_id(shown)
        _check_free(store, new_id)
        _check_space(store, header.file_bytes)
        with store.build(new_id, shown, f"Imported from {file.name}") as build:
            _check_free(store, new_id)  # again, now that no one else can publish it

            def told(step: str, fraction: float) -> None:
                build.progress(step, fraction)
                progress(step, fraction)

            copy = build.folder / "disk"
            _copy(source, copy, part(told, 0.0, 0.6))
            told("Checking the image", 0.6)
            with copy.open("rb") as file_copy:
                header = read_header(file_copy, disk_format, max_virtual_bytes=max_virtual_bytes)
            if image_info(copy, disk_format).get("virtual-size") != header.virtual_bytes:
                raise HostileImage("qemu-img reads another disk size from the image than its header says.")
            check_image(copy, disk_format)
            gib = -(-header.virtual_bytes >> 30)
            spec = ImageSpec(
                id=new_id,
                disk="disk",
                disk_format=disk_format,
                memory_mib=memory_mib,
                vcpus=vcpus,
                disk_gib=10 if disk_format is DiskFormat.ISO else max(1, gib),
            )
            return build.publish(spec, {"disk": copy}, progress=part(told, 0.7, 1.0))


def _check_free(store: ImageStore, new_id: str) -> None:
    try:
        store.manifest(new_id)
    except NotFound:
        return
    raise Conflict(f"There is an image {new_id} already. Choose another --name, or remove it first.")


def _check_space(store: ImageStore, needed: int) -> None:
    folder = next(path for path in (store.root, *store.root.parents) if path.exists())
    status = os.statvfs(folder)
    if (free := status.f_bavail * status.f_frsize) < needed:
        raise SetupError(
            f"The image takes {needed >> 20} MiB, and {folder} has {free >> 20} MiB free.",
            "Free some space, or move the images with PUPITRE_IMAGE_STORE.",
        )


def _copy(source: BinaryIO, target: Path, progress: Progress) -> None:
    """Shares the blocks where the file system can, else copies; holes stay holes."""
    size, done = os.fstat(source.fileno()).st_size or 1, 0
    progress("Copying the image", 0.0)
    with target.open("wb") as out:
        try:
            fcntl.ioctl(out.fileno(), FICLONE, source.fileno())
        except OSError as error:
            if error.errno not in CANNOT_CLONE:
                raise
            source.seek(0)
            while chunk := source.read(CHUNK):
                if chunk.count(0) == len(chunk):
                    out.seek(len(chunk), os.SEEK_CUR)
                else:
                    out.write(chunk)
                done += len(chunk)
                progress("Copying the image", done / size)
            out.truncate(done)
    target.chmod(0o444)
