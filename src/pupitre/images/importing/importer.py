"""Takes a stranger's image file into the store: copied first, then judged, so that what is kept is what was checked."""

import hashlib
import os
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from pupitre.domain.image import (
    LONGEST_NAME,
    DiskBus,
    DiskFormat,
    Firmware,
    ImageSpec,
    id_from_name,
    name_fault,
    spec_fault,
)
from pupitre.domain.text import shown
from pupitre.errors import Conflict, HostileImage, ImageFault, Invalid, NotFound, SetupError
from pupitre.images.copying import allocated, copy
from pupitre.images.importing.confine import check_image, image_info
from pupitre.images.importing.converting import convert
from pupitre.images.importing.foreign import READERS
from pupitre.images.importing.foreign.ova import read_appliance
from pupitre.images.importing.header import (
    MAX_VIRTUAL_BYTES,
    AnyFormat,
    Foreign,
    agreed_format,
    checked_size,
    open_regular,
    read_header,
)
from pupitre.images.manifest import Manifest
from pupitre.images.progress import Progress, part, silent
from pupitre.images.store import ImageStore

DEFAULT_MEMORY_MIB = 2048
DEFAULT_VCPUS = 2
MOST_HOLES = 64 << 20
"""Bytes of holes that a raw disk may have in the store: its digest is of all its bytes, those of holes too."""


def image_name(file: Path, name: str | None) -> str:
    """Name that people see: ``name`` as it was given, or the file's name as it can be shown. Raises `Invalid`."""
    if name is None:
        name = shown(file.stem, LONGEST_NAME)
    if fault := name_fault(name):
        raise Invalid(f"{fault} Choose another --name.")
    return unicodedata.normalize("NFC", name.strip())


def image_id(name: str) -> str:
    """The id that an image of this name gets."""
    return id_from_name(name, hashlib.sha256(name.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Wish:
    """Wishes of the importing person; None is what the file says, else what is usual."""

    name: str | None = None
    new_id: str | None = None
    disk_format: AnyFormat | None = None
    memory_mib: int | None = None
    vcpus: int | None = None
    disk_bus: DiskBus | None = None
    firmware: Firmware | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that was read and found harmless: what becomes of it, and where in it the disk lies."""

    spec: ImageSpec
    disk_format: AnyFormat
    part: tuple[int, int] | None = None
    digest: tuple[str, str] | None = None


def import_image(
    store: ImageStore,
    file: Path,
    *,
    name: str | None = None,
    new_id: str | None = None,
    disk_format: AnyFormat | None = None,
    memory_mib: int | None = None,
    vcpus: int | None = None,
    disk_bus: DiskBus | None = None,
    firmware: Firmware | None = None,
    max_virtual_bytes: int = MAX_VIRTUAL_BYTES,
    progress: Progress = silent,
) -> Manifest:
    """The image as published. Raises `HostileImage`, `Invalid`, `Conflict`, `SetupError`; nothing is changed then."""
    wish = Wish(name, new_id, disk_format, memory_mib, vcpus, disk_bus, firmware)
    label, file_label = image_name(file, name), shown(file.name, 200)
    with open_regular(file) as source:
        found = _examine(source, file, wish, new_id or image_id(label), max_virtual_bytes)
        spec = found.spec
        if fault := spec_fault(spec):
            raise Invalid(fault)
        _check_free(store, spec.id)
        _check_space(store, allocated(os.fstat(source.fileno())))
        with store.build(spec.id, label, f"Imported from {file_label}", "Import it again.") as build:
            _check_free(store, spec.id)  # again, now that no one else can publish it

            def told(step: str, fraction: float) -> None:
                build.progress(step, fraction)
                progress(step, fraction)

            disk = build.folder / "disk"
            copy(source, disk, part(told, 0.0, 0.5), file_label, found.part)
            if found.digest:
                told("Checking the image", 0.5)
                _check_digest(disk, found.digest)
            virtual = _judge(disk, found.disk_format, max_virtual_bytes)
            if _is_to_be_converted(disk, found.disk_format):
                check_image(disk, found.disk_format)
                copied, disk = disk, build.folder / "converted"
                convert(copied, found.disk_format, disk, virtual, part(told, 0.5, 0.8))
                copied.unlink()
                spec = replace(spec, disk_format=DiskFormat.QCOW2)
                if _judge(disk, DiskFormat.QCOW2, max_virtual_bytes) != virtual:
                    raise HostileImage("The converted disk has another size than the image's header says.")
            told("Checking the image", 0.8)
            check_image(disk, spec.disk_format)
            gib = 10 if spec.disk_format is DiskFormat.ISO else max(1, -(-virtual >> 30))
            return build.publish(replace(spec, disk_gib=gib), {"disk": disk}, progress=part(told, 0.85, 1.0))


def _examine(source: BinaryIO, file: Path, wish: Wish, new_id: str, max_virtual_bytes: int) -> _Source:
    """Reads of the file what can be read before it is copied."""
    disk_format = wish.disk_format or agreed_format(file, source)
    appliance = None
    if disk_format is Foreign.OVA:
        appliance = read_appliance(source, os.fstat(source.fileno()).st_size)
    else:
        _virtual_bytes(source, disk_format, max_virtual_bytes)
    is_foreign = disk_format in frozenset(Foreign)
    spec = ImageSpec(
        id=new_id,
        disk="disk",
        disk_format=DiskFormat.QCOW2 if is_foreign else DiskFormat(disk_format),
        memory_mib=_first(wish.memory_mib, appliance.memory_mib if appliance else None, DEFAULT_MEMORY_MIB),
        vcpus=_first(wish.vcpus, appliance.vcpus if appliance else None, DEFAULT_VCPUS),
        disk_bus=wish.disk_bus or (DiskBus.SATA if is_foreign else DiskBus.VIRTIO),
        firmware=wish.firmware or (appliance.firmware if appliance else Firmware.BIOS),
    )
    if appliance is None:
        return _Source(spec, disk_format)
    return _Source(spec, appliance.disk_format, (appliance.offset, appliance.length), appliance.digest)


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def _virtual_bytes(file: BinaryIO, disk_format: AnyFormat, max_virtual_bytes: int) -> int:
    if isinstance(disk_format, DiskFormat):
        return read_header(file, disk_format, max_virtual_bytes=max_virtual_bytes).virtual_bytes
    size = file.seek(0, os.SEEK_END)
    return checked_size(READERS[disk_format](file, size), max_virtual_bytes)


def _judge(disk: Path, disk_format: AnyFormat, max_virtual_bytes: int) -> int:
    """The size of the disk in our own copy, on which our reader and qemu-img agree. Raises `HostileImage`."""
    with disk.open("rb") as file:
        virtual = _virtual_bytes(file, disk_format, max_virtual_bytes)
    info = image_info(disk, disk_format)
    if info.get("virtual-size") != virtual:
        raise HostileImage("qemu-img reads another disk size from the image than its header says.")
    if {"backing-filename", "full-backing-filename"} & info.keys():
        raise HostileImage("The image refers to another file.")
    return virtual


def _is_to_be_converted(disk: Path, disk_format: AnyFormat) -> bool:
    """Test for a format that no guest takes, and for a disk with large holes: in a qcow2 they are read at once."""
    status = disk.stat()
    holes = status.st_size - allocated(status)
    return disk_format in frozenset(Foreign) or (disk_format is DiskFormat.RAW and holes > MOST_HOLES)


def _check_digest(disk: Path, expected: tuple[str, str]) -> None:
    with disk.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(expected[0], usedforsecurity=False))
    if found.hexdigest() != expected[1]:
        raise HostileImage("The OVA's disk is not what its manifest says; it may be damaged.")


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
