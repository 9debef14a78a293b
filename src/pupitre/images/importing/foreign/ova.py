"""A computer in one file: a tar archive of a descriptor (OVF), its disk, and digests of both.

Nothing is unpacked by its name: the one disk that the descriptor names is found in the archive, and its bytes
are read from there. Links, devices, folders and names with a path are refused.

Source: DMTF DSP0243 (OVF 2.1); ResourceType from CIM_ResourceAllocationSettingData.
"""

import hashlib
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from lxml import etree

from pupitre.domain.image import DiskBus, Firmware
from pupitre.domain.text import shown
from pupitre.errors import HostileImage
from pupitre.images.importing.header import Foreign

MOST_MEMBERS = 64
LARGEST_HEADER = 16 << 10
"""Bytes; only headers are read by `tarfile`, and a longer one is made to exhaust memory."""
LARGEST_TEXT = 1 << 20
PROCESSORS, MEMORY, DISK = "3", "4", "17"
MIB = 1 << 20
_UNITS = {"megabytes": MIB, "mb": MIB, "gigabytes": 1 << 30, "gb": 1 << 30, "kilobytes": 1 << 10, "bytes": 1, "": MIB}
_POWER = re.compile(r"byte\s*\*\s*2\s*\^\s*(\d{1,2})")
_DIGEST = re.compile(r"(SHA1|SHA256|SHA512)\s*\(([^)]+)\)\s*=\s*([0-9a-fA-F]{40,128})")


@dataclass(frozen=True, slots=True)
class Appliance:
    """``offset`` and ``length`` are where the disk lies in the archive; ``digest`` of it is an algorithm and hex."""

    name: str
    offset: int
    length: int
    disk_format: Foreign
    memory_mib: int | None
    vcpus: int | None
    firmware: Firmware
    disk_bus: DiskBus
    digest: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class _Descriptor:
    disk_file: str
    memory_mib: int | None
    vcpus: int | None
    firmware: Firmware
    name: str = field(default="")


def read_appliance(file: BinaryIO, size: int) -> Appliance:
    """Contents of an OVA. Raises `HostileImage`."""
    members = _members(file, size)
    descriptors = [name for name in members if name.lower().endswith(".ovf")]
    if len(descriptors) != 1:
        raise HostileImage(f"An OVA has one descriptor (.ovf); this archive has {len(descriptors)}.")
    content = _text(file, members[descriptors[0]])
    described = read_descriptor(content)
    if described.disk_file not in members:
        raise HostileImage(f"The OVA's disk {shown(described.disk_file, 100)!r} is not in it; it may be cut off.")
    digests = _digests(file, members)
    _check(content, digests.get(descriptors[0]), "descriptor")
    kind = described.disk_file.rsplit(".", 1)[-1].lower()
    if kind not in {Foreign.VMDK, Foreign.VDI, Foreign.VHDX}:
        raise HostileImage(f"The OVA's disk is of the format {shown(kind, 20)!r}; VMDK, VDI and VHDX are known here.")
    offset, length = members[described.disk_file]
    return Appliance(
        name=described.name,
        offset=offset,
        length=length,
        disk_format=Foreign(kind),
        memory_mib=described.memory_mib,
        vcpus=described.vcpus,
        firmware=described.firmware,
        disk_bus=DiskBus.SATA,  # q35 has no IDE, and of SCSI controllers each product has its own
        digest=digests.get(described.disk_file),
    )


class _Headers:
    """Headers that `tarfile` reads of an archive, none of them made to exhaust memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        if not 0 <= count <= LARGEST_HEADER:
            raise HostileImage(
                f"A header of the OVA claims {count >> 10} KiB; at most {LARGEST_HEADER >> 10} are allowed."
            )
        return self._file.read(count)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _members(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Offset and length of every file of the archive, by name."""
    file.seek(0)
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # it keeps them all otherwise
                name = member.name
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                    raise HostileImage(f"The OVA holds {shown(name, 100)!r}, which is no plain file.")
                if "/" in name or "\\" in name or name.startswith(".") or not name.isprintable():
                    raise HostileImage(f"The OVA holds a file by the name {shown(name, 100)!r}, which is a path.")
                if name in found or len(found) >= MOST_MEMBERS:
                    raise HostileImage("The OVA holds two files of one name, or too many files.")
                if member.size < 0 or member.offset_data + member.size > size:
                    raise HostileImage(f"The OVA is cut off: {shown(name, 100)!r} ends beyond it.")
                found[name] = member.offset_data, member.size
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise HostileImage(f"The OVA is no archive that can be read: {shown(str(error), 200)}.") from error
    if not found:
        raise HostileImage("The OVA holds no file.")
    return found


def read_descriptor(content: bytes) -> _Descriptor:
    """Description of the one computer in an OVF. Raises `HostileImage`."""
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(content, parser)
    except etree.XMLSyntaxError as error:
        raise HostileImage(f"The OVA's descriptor is no XML: {shown(str(error), 200)}.") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise HostileImage("The OVA's descriptor defines entities.")
    systems = _all(root, "VirtualSystem")
    if len(systems) != 1:
        raise HostileImage(f"The OVA holds {len(systems)} computers; export one alone.")
    hardware = _all(systems[0], "VirtualHardwareSection")
    if not hardware:
        raise HostileImage("The OVA's descriptor names no hardware.")
    items = [{etree.QName(part).localname: (part.text or "").strip() for part in item.iterchildren("*")}
             for item in _all(hardware[0], "Item") + _all(hardware[0], "StorageItem")]  # fmt: skip
    names = [
        (part.text or "").strip() for part in systems[0].iterchildren("*") if etree.QName(part).localname == "Name"
    ]
    return _Descriptor(
        disk_file=_disk_file(root, [item for item in items if item.get("ResourceType") == DISK]),
        memory_mib=_memory(items),
        vcpus=_quantity(next((item for item in items if item.get("ResourceType") == PROCESSORS), None)),
        firmware=_firmware(root),
        name=names[0] if names else "",
    )


def _disk_file(root: "etree._Element", drives: list[dict[str, str]]) -> str:
    files = {_get(each, "id"): each for each in _all(root, "File")}
    disks = {_get(each, "diskId"): each for each in _all(root, "Disk")}
    wanted = [host.rsplit("/", 1)[-1] for drive in drives if (host := drive.get("HostResource", ""))]
    used = [disks[each] for each in wanted if each in disks] or list(disks.values())
    with_file = [disk for disk in used if _get(disk, "fileRef")]
    if len(with_file) != 1:
        raise HostileImage(f"The OVA's computer has {len(with_file)} disks with content; exactly one can be imported.")
    (disk,) = with_file
    if _get(disk, "parentRef"):
        raise HostileImage("The OVA's disk refers to a parent.")
    file = files.get(_get(disk, "fileRef"))
    if file is None or not _get(file, "href"):
        raise HostileImage("The OVA's descriptor names a disk that is not among its files.")
    if _get(file, "chunkSize") or _get(file, "compression") not in ("", "identity"):
        raise HostileImage("The OVA's disk is compressed or in pieces; export it without.")
    return _get(file, "href")


def _memory(items: list[dict[str, str]]) -> int | None:
    item = next((item for item in items if item.get("ResourceType") == MEMORY), None)
    amount = _quantity(item)
    if item is None or amount is None:
        return None
    units = item.get("AllocationUnits", "").strip().lower()
    power = _POWER.fullmatch(units)
    scale = 1 << int(power[1]) if power else _UNITS.get(units)
    if scale is None:
        raise HostileImage(f"The OVA's memory is counted in {shown(units, 40)!r}, which is not known here.")
    return amount * scale // MIB


def _quantity(item: Mapping[str, str] | None) -> int | None:
    text = item.get("VirtualQuantity", "") if item else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else None


def _firmware(root: "etree._Element") -> Firmware:
    """Said by VMware in a Config element, by VirtualBox in one of its own."""
    for element in _all(root, "Config"):
        if _get(element, "key") == "firmware" and _get(element, "value").lower() == "efi":
            return Firmware.EFI
    if any(_get(element, "type").upper().startswith("EFI") for element in _all(root, "Firmware")):
        return Firmware.EFI
    return Firmware.BIOS


def _digests(file: BinaryIO, members: Mapping[str, tuple[int, int]]) -> dict[str, tuple[str, str]]:
    """Digests by file name, from the archive's manifest (.mf), where it has one."""
    found: dict[str, tuple[str, str]] = {}
    for name in members:
        if name.lower().endswith(".mf"):
            text = _text(file, members[name]).decode("utf-8", "replace")
            found |= {each[2].strip(): (each[1].lower(), each[3].lower()) for each in _DIGEST.finditer(text)}
    return found


def _check(content: bytes, digest: tuple[str, str] | None, what: str) -> None:
    if digest and hashlib.new(digest[0], content, usedforsecurity=False).hexdigest() != digest[1]:
        raise HostileImage(f"The OVA's {what} is not what its manifest says; it may be damaged.")


def _text(file: BinaryIO, member: tuple[int, int]) -> bytes:
    offset, length = member
    if length > LARGEST_TEXT:
        raise HostileImage(f"The OVA's descriptor or manifest has {length >> 10} KiB; at most 1024 are allowed.")
    file.seek(offset)
    return file.read(length)


def _all(root: "etree._Element", name: str) -> "list[etree._Element]":
    return list(root.iter(f"{{*}}{name}"))


def _get(element: "etree._Element", name: str) -> str:
    """An attribute, in whatever name space."""
    return next((str(value) for key, value in element.attrib.items() if etree.QName(key).localname == name), "")
