"""Takes a stranger's image file into the store: copied first, then judged, so that what is kept is what was checked."""

import hashlib
import os
import unicodedata
from pathlib import Path

from pupitre.domain.image import (
    ID_RULE,
    IMAGE_ID,
    LONGEST_NAME,
    DiskFormat,
    ImageSpec,
    id_from_name,
    name_fault,
    spec_fault,
)
from pupitre.domain.text import shown
from pupitre.errors import Conflict, HostileImage, ImageFault, Invalid, NotFound, SetupError
from pupitre.images.confine import check_image, image_info
from pupitre.images.copying import allocated, copy
from pupitre.images.header import MAX_VIRTUAL_BYTES, agreed_format, open_regular, read_header
from pupitre.images.manifest import Manifest
from pupitre.images.progress import Progress, part, silent
from pupitre.images.store import ImageStore

DEFAULT_MEMORY_MIB = 2048
DEFAULT_VCPUS = 2


def image_name(file: Path, name: str | None) -> str:
    """What people see: ``name`` as it was given, or the file's name as it can be shown. Raises `Invalid`."""
    if name is None:
        name = shown(file.stem, LONGEST_NAME)
    if fault := name_fault(name):
        raise Invalid(f"{fault} Choose another --name.")
    return unicodedata.normalize("NFC", name.strip())


def image_id(name: str) -> str:
    """The id that an image of this name gets."""
    return id_from_name(name, hashlib.sha256(name.encode()).hexdigest())


def import_image(
    store: ImageStore,
    file: Path,
    *,
    name: str | None = None,
    new_id: str | None = None,
    disk_format: DiskFormat | None = None,
    memory_mib: int = DEFAULT_MEMORY_MIB,
    vcpus: int = DEFAULT_VCPUS,
    max_virtual_bytes: int = MAX_VIRTUAL_BYTES,
    progress: Progress = silent,
) -> Manifest:
    """The image as published. Raises `HostileImage`, `Invalid`, `Conflict`, `SetupError`; nothing is changed then."""
    label, file_label = image_name(file, name), shown(file.name, 200)
    new_id = new_id or image_id(label)
    if not IMAGE_ID.fullmatch(new_id):
        raise Invalid(ID_RULE)
    with open_regular(file) as source:
        disk_format = disk_format or agreed_format(file, source)
        header = read_header(source, disk_format, max_virtual_bytes=max_virtual_bytes)
        spec = ImageSpec(
            id=new_id, disk="disk", disk_format=disk_format, memory_mib=memory_mib, vcpus=vcpus,
            disk_gib=10 if disk_format is DiskFormat.ISO else max(1, -(-header.virtual_bytes >> 30)),
        )  # fmt: skip
        if fault := spec_fault(spec):
            raise Invalid(fault)
        _check_free(store, new_id)
        _check_space(store, allocated(os.fstat(source.fileno())))
        with store.build(new_id, label, f"Imported from {file_label}", "Import it again.") as build:
            _check_free(store, new_id)  # again, now that no one else can publish it

            def told(step: str, fraction: float) -> None:
                build.progress(step, fraction)
                progress(step, fraction)

            disk = build.folder / "disk"
            copy(source, disk, part(told, 0.0, 0.6), file_label)
            told("Checking the image", 0.6)
            with disk.open("rb") as file_copy:
                header = read_header(file_copy, disk_format, max_virtual_bytes=max_virtual_bytes)
            if image_info(disk, disk_format).get("virtual-size") != header.virtual_bytes:
                raise HostileImage("qemu-img reads another disk size from the image than its header says.")
            check_image(disk, disk_format)
            return build.publish(spec, {"disk": disk}, progress=part(told, 0.7, 1.0))


def _check_free(store: ImageStore, new_id: str) -> None:
    try:
        store.manifest(new_id)
    except NotFound:
        return
    except ImageFault as error:
        raise Conflict(str(error)) from error
    raise Conflict(f"There is an image {new_id} already. Choose another --id or --name, or remove it first.")


def _check_space(store: ImageStore, needed: int) -> None:
    folder = next(path for path in (store.root, *store.root.parents) if path.exists())
    status = os.statvfs(folder)
    if (free := status.f_bavail * status.f_frsize) < needed:
        raise SetupError(
            f"The image takes {needed >> 20} MiB, and {folder} has {free >> 20} MiB free.",
            "Free some space, or move the images with PUPITRE_IMAGE_STORE.",
        )
