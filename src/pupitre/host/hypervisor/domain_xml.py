"""A guest as libvirt's domain XML: values in, an element out. No I/O but reading libvirt's schema.

What stays true: every device of the guest is named here and nothing else is
(``tests/unit/host/test_domain_xml.py`` reads it back); values only ever enter as text of
an element tree, so no string can add a device; ``qemu:commandline`` is never used;
formats are always explicit, so that nobody guesses them from a guest's own bytes;
the screen is a unix socket, never a port.

Format: https://libvirt.org/formatdomain.html
"""

import functools
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lxml import etree

from pupitre.domain.image import VIDEO_MODELS, DiskBus, DiskFormat, Firmware
from pupitre.errors import HypervisorError
from pupitre.host.hypervisor.port import Guest

NAMESPACE = "https://pupitre.invalid/domain/1"
"""Of our metadata element; a name, not an address."""
EFI = Path("/usr/share/ovmf/OVMF.fd")
"""Debian's EFI firmware (package ovmf). It keeps no variables: what boots is what a removable disk would boot."""
SOCKET_PATH_LIMIT = 107
"""Bytes of ``sockaddr_un.sun_path`` less the final NUL (unix(7))."""
TRANSLATION_CACHE_MIB = 128
"""Under emulation QEMU keeps translated code, by default up to 1 GiB of it per guest."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Properties that this host gives to every guest.

    ``accelerator`` is libvirt's word: ``kvm``, ``qemu`` (emulation) or ``test``.
    ``shared_images`` keeps libvirt from changing the owner of image files, which
    it otherwise does wherever QEMU runs as a user of its own.
    """

    accelerator: Literal["kvm", "qemu", "test"]
    emulator: Path | None
    network: Literal["none", "user"]
    shared_images: bool = False


def domain(guest: Guest, machine: Machine, serial: Path) -> etree._Element:
    """The whole document. Raises `HypervisorError` for a value that cannot be a guest's."""
    try:
        return _domain(guest, machine, serial)
    except ValueError as error:  # lxml refuses NUL and control characters
        raise HypervisorError(
            f"The image {guest.spec.id!r} has a setting that cannot be written as XML: {error}."
        ) from error


def _domain(guest: Guest, machine: Machine, serial: Path) -> etree._Element:
    spec = guest.spec
    root = etree.Element("domain", type=machine.accelerator)
    _text(root, "name", desktop_id(guest.desktop))
    _text(root, "uuid", guest.desktop)
    metadata = etree.SubElement(root, "metadata")
    etree.SubElement(
        metadata,
        f"{{{NAMESPACE}}}guest",
        nsmap={"pupitre": NAMESPACE},
        desktop=guest.desktop,
        boot=_positive(guest.boot, "boot generation", least=0),
    )
    _text(root, "memory", _positive(spec.memory_mib, "memory"), unit="MiB")
    _text(root, "vcpu", _positive(spec.vcpus, "number of CPUs"))

    system = etree.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", **({} if machine.accelerator == "test" else {"machine": "q35"}))
    if spec.firmware is Firmware.EFI and machine.accelerator != "test":
        _text(system, "loader", str(EFI), readonly="yes", type="rom")
    if guest.kernel:
        _text(system, "kernel", _path(guest.kernel))
        if guest.initrd:
            _text(system, "initrd", _path(guest.initrd))
        if spec.cmdline:
            _text(system, "cmdline", _one_line(spec.cmdline, "kernel command line"))

    features = etree.SubElement(root, "features")
    etree.SubElement(features, "acpi")
    etree.SubElement(features, "apic")
    if machine.accelerator == "qemu":
        _text(etree.SubElement(features, "tcg"), "tb-cache", str(TRANSLATION_CACHE_MIB), unit="MiB")
    if machine.accelerator != "test":
        etree.SubElement(root, "cpu", mode="maximum")
    etree.SubElement(root, "clock", offset="utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _text(root, f"on_{event}", action)

    devices = etree.SubElement(root, "devices")
    if machine.emulator:
        _text(devices, "emulator", _path(machine.emulator))
    _disk(devices, guest, machine)
    if guest.cdrom:
        _cdrom(devices, guest.cdrom, machine)
    _buses(devices)
    if machine.network == "user":
        _network(devices, guest)
    _serial(devices, serial)
    _screen(devices, guest)
    etree.SubElement(devices, "memballoon", model="virtio", freePageReporting="on")
    generator = etree.SubElement(devices, "rng", model="virtio")
    _text(generator, "backend", "/dev/urandom", model="random")
    return root


def _disk(devices: etree._Element, guest: Guest, machine: Machine) -> None:
    disk = etree.SubElement(devices, "disk", type="file", device="disk")
    # What the host's disk refuses never reaches the guest as an error: it is paused until there is space again.
    etree.SubElement(
        disk, "driver", name="qemu", type="qcow2", discard="unmap", error_policy="stop", rerror_policy="stop"
    )
    etree.SubElement(disk, "source", file=_path(guest.disk))
    # An explicit chain keeps libvirt from opening the files to look for one.
    backing = etree.SubElement(disk, "backingStore")
    if guest.backing:
        backing.set("type", "file")
        kind = DiskFormat.QCOW2 if guest.spec.disk_format is DiskFormat.QCOW2 else DiskFormat.RAW
        etree.SubElement(backing, "format", type=kind)
        _keep_owner(etree.SubElement(backing, "source", file=_path(guest.backing)), machine)
        etree.SubElement(backing, "backingStore")
    bus = guest.spec.disk_bus
    etree.SubElement(disk, "target", dev="vda" if bus is DiskBus.VIRTIO else "sda", bus=bus)
    if not guest.kernel:
        etree.SubElement(disk, "boot", order="1")


def _cdrom(devices: etree._Element, image: Path, machine: Machine) -> None:
    disk = etree.SubElement(devices, "disk", type="file", device="cdrom")
    etree.SubElement(disk, "driver", name="qemu", type="raw")
    _keep_owner(etree.SubElement(disk, "source", file=_path(image)), machine)
    etree.SubElement(disk, "target", dev="sdb", bus="sata")
    etree.SubElement(disk, "readonly")
    etree.SubElement(disk, "boot", order="2")


def _keep_owner(source: etree._Element, machine: Machine) -> None:
    if machine.shared_images:
        etree.SubElement(source, "seclabel", model="dac", relabel="no")


def _buses(devices: etree._Element) -> None:
    etree.SubElement(devices, "controller", type="usb", model="qemu-xhci")


def _network(devices: etree._Element, guest: Guest) -> None:
    interface = etree.SubElement(devices, "interface", type="user")
    tail = uuid.UUID(guest.desktop).bytes[-3:]
    etree.SubElement(interface, "mac", address="52:54:00:" + tail.hex(":"))
    etree.SubElement(interface, "model", type="virtio")


def _serial(devices: etree._Element, path: Path) -> None:
    # QEMU drops what no one reads: nothing a guest writes here is ever stored.
    if len(str(path).encode()) > SOCKET_PATH_LIMIT:
        raise HypervisorError(
            f"The path of the serial socket, {path}, is longer than {SOCKET_PATH_LIMIT} bytes. "
            "Set PUPITRE_HOME to a folder with a shorter path."
        )
    serial = etree.SubElement(devices, "serial", type="unix")
    etree.SubElement(serial, "source", mode="bind", path=_path(path))
    etree.SubElement(serial, "target", type="isa-serial", port="0")


def _screen(devices: etree._Element, guest: Guest) -> None:
    if guest.spec.video not in VIDEO_MODELS:
        choice = " or ".join(sorted(VIDEO_MODELS))
        raise HypervisorError(f"The image {guest.spec.id!r} wants video {guest.spec.video!r}; choose {choice}.")
    # An absolute pointer: the guest's cursor is where the browser's is. Every system
    # knows the USB one; a guest with the virtio screen has the virtio pointer too,
    # which costs nothing while it rests.
    bus = "virtio" if guest.spec.video == "virtio" else "usb"
    etree.SubElement(devices, "input", type="tablet", bus=bus)
    graphics = etree.SubElement(devices, "graphics", type="vnc", sharePolicy="force-shared")
    etree.SubElement(graphics, "listen", type="socket")
    etree.SubElement(devices, "audio", id="1", type="none")
    video = etree.SubElement(devices, "video")
    etree.SubElement(video, "model", type=guest.spec.video)


def identity(metadata: str) -> tuple[str, int]:
    """Desktop and boot generation from our metadata element. Raises `HypervisorError`."""
    try:
        element = etree.fromstring(metadata, etree.XMLParser(resolve_entities=False, no_network=True))
        return desktop_id(element.get("desktop", "")), int(element.get("boot", ""))
    except (etree.XMLSyntaxError, ValueError) as error:
        raise HypervisorError("A domain carries metadata in our name that we did not write.") from error


def is_desktop_id(text: str) -> bool:
    """Whether it is a UUID in its usual form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def desktop_id(text: str) -> str:
    """``text`` if it is the id of a desktop. Raises `HypervisorError`."""
    if is_desktop_id(text):
        return text
    raise HypervisorError(f"{text!r} is not the id of a desktop.")


def validate(root: etree._Element, schemas: Path) -> None:
    """Check against libvirt's own schema. Raises `HypervisorError` with the first fault."""
    schema = _schema(schemas / "domain.rng")
    if not schema.validate(root):
        fault = schema.error_log.last_error
        raise HypervisorError(
            f"The domain does not fit libvirt's schema: {fault.message if fault else 'unknown fault'}."
        )


@functools.cache
def _schema(path: Path) -> etree.RelaxNG:
    return etree.RelaxNG(etree.parse(str(path)))


def _text(parent: etree._Element, tag: str, text: str, **attributes: str) -> None:
    etree.SubElement(parent, tag, attributes).text = text


def _path(path: Path) -> str:
    if not path.is_absolute() or ".." in path.parts:
        raise HypervisorError(f"{path} is not an absolute path without '..'.")
    return _one_line(str(path), "path")


def _one_line(text: str, name: str) -> str:
    """``text``, in which libvirt keeps every character: it stores line breaks and tabs of attributes as spaces."""
    if any(ord(character) < ord(" ") for character in text):
        raise HypervisorError(f"The {name} {text!r} of a guest has a control character. Take it out.")
    return text


def _positive(value: int, name: str, least: int = 1) -> str:
    if value < least:
        raise HypervisorError(f"The {name} of a guest cannot be {value}.")
    return str(value)
