"""The domain XML: read back, it has the devices that were meant, whatever the strings say."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import HypervisorError
from pupitre.host.hypervisor import libvirt_driver
from pupitre.host.hypervisor.domain_xml import NAMESPACE, Machine, domain, identity, validate
from pupitre.host.hypervisor.port import Guest

SCHEMAS = Path("/usr/share/libvirt/schemas")
SERIAL = Path("/run/serial")
ALWAYS = ["controller", "disk", "input", "serial", "graphics", "audio", "video", "memballoon", "rng"]

xml_text = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=40)
file_names = xml_text.filter(lambda name: name not in {"", ".", ".."} and "/" not in name and name == name.strip())
files = file_names.map(lambda name: Path("/images") / name)


@st.composite
def guests(draw: st.DrawFn) -> Guest:
    kernel = draw(st.none() | files)
    spec = ImageSpec(
        id=draw(xml_text),
        disk="d",
        disk_format=draw(st.sampled_from(DiskFormat)),
        memory_mib=draw(st.integers(1, 1 << 20)),
        vcpus=draw(st.integers(1, 255)),
        cmdline=draw(st.none() | xml_text),
        video=draw(st.sampled_from(["vga", "virtio"])),
    )
    return Guest(
        desktop=str(draw(st.uuids())),
        boot=draw(st.integers(0, 1 << 40)),
        spec=spec,
        disk=draw(files),
        backing=draw(st.none() | files),
        kernel=kernel,
        initrd=draw(st.none() | files) if kernel else None,
        cdrom=draw(st.none() | files),
    )


machines = st.builds(
    Machine,
    accelerator=st.sampled_from(["kvm", "qemu", "test"]),
    emulator=st.sampled_from([None, Path("/usr/bin/qemu-system-x86_64")]),
    network=st.sampled_from(["none", "user"]),
    shared_images=st.booleans(),
)


@given(guests(), machines)
def test_read_back_it_has_the_intended_devices_and_no_other(guest: Guest, machine: Machine) -> None:
    read = etree.fromstring(etree.tostring(domain(guest, machine, SERIAL)))
    devices = read.find("devices")
    assert devices is not None
    wanted = list(ALWAYS)
    wanted += ["emulator"] if machine.emulator else []
    wanted += ["disk"] if guest.cdrom else []
    wanted += ["interface"] if machine.network == "user" else []
    assert sorted(str(device.tag) for device in devices) == sorted(wanted)
    assert devices.findall("graphics/listen[@type='socket']")
    assert len(devices.findall("graphics/listen")) == 1
    assert [source.get("file") for source in devices.findall("disk/source")] == [
        str(path) for path in (guest.disk, guest.cdrom) if path
    ]
    assert read.findtext("os/kernel") == (str(guest.kernel) if guest.kernel else None)
    assert (read.findtext("os/cmdline") or None) == ((guest.spec.cmdline or None) if guest.kernel else None)
    assert not [tag for tag in read.iter() if "qemu" in str(tag.tag)]


@given(guests(), machines)
def test_it_fits_the_schema_of_libvirt_and_says_whose_it_is(guest: Guest, machine: Machine) -> None:
    document = domain(guest, machine, SERIAL)
    validate(document, SCHEMAS)
    metadata = document.find("metadata")
    assert metadata is not None
    assert identity(etree.tostring(metadata[0], encoding="unicode")) == (guest.desktop, guest.boot)


HOSTILE = (
    "</cmdline></os><devices><disk type='file'><source file='/etc/shadow'/></disk></devices>",
    "</name><name>other",
    "' file='/etc/shadow",
    '" type="block" dev="/dev/sda',
    "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'><q:arg value='-S'/></q:commandline>",
    "]]><hostdev/>",
    "<![CDATA[<hostdev/>]]>",
    "<!--",
    "--><filesystem/><!--",
    "<?xml version='1.0'?>",
    "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/shadow'>]>&e;",
    "&lt;disk/&gt;&#60;disk/&#62;",
    "-drive file=/etc/shadow,format=raw",
    "../../../etc/shadow",
    "a\x00b",
    "a\nb\tc\rd",
    "\ud800",
    "\ufffe",
    "\x85\u2028",
)
"""What has been tried on others."""
anything = st.text(max_size=30) | st.sampled_from(HOSTILE) | st.tuples(xml_text, st.sampled_from(HOSTILE)).map("".join)
any_path = anything.map(lambda text: Path("/" + text))


@st.composite
def guests_of_anything(draw: st.DrawFn) -> Guest:
    """As `guests`, of strings that nobody has looked at."""
    spec = ImageSpec(
        id=draw(anything),
        disk=draw(anything),
        disk_format=draw(st.sampled_from(DiskFormat)),
        memory_mib=draw(st.integers(-1, 1 << 20)),
        vcpus=draw(st.integers(-1, 255)),
        cmdline=draw(st.none() | anything),
        video=draw(st.sampled_from(["vga", "virtio"]) | anything),
    )
    return Guest(
        desktop=draw(st.uuids().map(str) | anything),
        boot=draw(st.integers(-1, 1 << 40)),
        spec=spec,
        disk=draw(any_path),
        backing=draw(st.none() | any_path),
        kernel=draw(st.none() | any_path),
        initrd=draw(st.none() | any_path),
        cdrom=draw(st.none() | any_path),
    )


def model(guest: Guest, machine: Machine) -> list[tuple[str, str]]:
    """Every device that the guest is meant to have, with the file behind it."""
    devices = [(tag, str(guest.disk) if tag == "disk" else str(SERIAL) if tag == "serial" else "") for tag in ALWAYS]
    devices += [("disk", str(guest.cdrom))] if guest.cdrom else []
    devices += [("emulator", str(machine.emulator))] if machine.emulator else []
    devices += [("interface", "")] if machine.network == "user" else []
    return sorted(devices)


def devices_of(document: etree._Element) -> list[tuple[str, str]]:
    """The same of a document, read back."""
    found = []
    for device in document.findall("devices/*"):
        source = device.find("source")
        file = "" if source is None else source.get("file") or source.get("path") or ""
        found.append((str(device.tag), str(device.text) if device.tag == "emulator" else file))
    return sorted(found)


def hostile_example(guest: Guest, machine: Machine) -> etree._Element | None:
    """The document as libvirt would read it; None when there is none."""
    try:
        document = domain(guest, machine, SERIAL)
    except HypervisorError:
        return None
    return etree.fromstring(etree.tostring(document, encoding="unicode"))


@settings(max_examples=400)
@given(guests_of_anything(), machines)
def test_no_string_adds_changes_or_hides_a_device(guest: Guest, machine: Machine) -> None:
    """Threat 9. Such a guest is refused, or it is exactly the one that was meant."""
    read = hostile_example(guest, machine)
    if read is None:
        return
    assert devices_of(read) == model(guest, machine)
    assert read.findtext("name") == read.findtext("uuid") == guest.desktop == str(uuid.UUID(guest.desktop))
    assert read.findtext("memory") == str(guest.spec.memory_mib)
    assert read.findtext("os/kernel") == (str(guest.kernel) if guest.kernel else None)
    assert {etree.QName(element).namespace for element in read.iter(etree.Element)} <= {None, NAMESPACE}
    assert not list(read.iter(etree.Comment, etree.ProcessingInstruction, etree.Entity))


@pytest.fixture(scope="module")
def test_driver() -> Iterator[libvirt.virConnect]:
    libvirt_driver._start_event_loop()  # before the first connection of a process, whichever it is
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def test_libvirt_reads_what_was_meant(test_driver: libvirt.virConnect) -> None:
    """Its own reading, given back: what it fills in by itself is of none of the kinds that reach a host."""
    reaching = ("disk", "serial", "hostdev", "filesystem", "interface", "channel", "redirdev", "tpm", "shmem", "vsock")
    taken = 0

    @settings(max_examples=150, deadline=None)
    @given(guests_of_anything() | guests())
    def read_by_libvirt(guest: Guest) -> None:
        nonlocal taken
        machine = Machine("test", None, "none")
        document = hostile_example(guest, machine)
        if document is None:
            return
        try:
            defined = test_driver.defineXML(etree.tostring(document, encoding="unicode"))
        except libvirt.libvirtError:
            return  # libvirt refuses more than we do
        try:
            read = etree.fromstring(defined.XMLDesc())
        finally:
            defined.undefine()
        taken += 1
        meant = [device for device in model(guest, machine) if device[0] in reaching]
        assert [device for device in devices_of(read) if device[0] in reaching] == meant
        assert read.findtext("os/kernel") == document.findtext("os/kernel")
        assert (read.findtext("os/cmdline") or None) == (document.findtext("os/cmdline") or None)
        assert {etree.QName(element).namespace for element in read.iter(etree.Element)} <= {None, NAMESPACE}

    read_by_libvirt()
    assert taken > 20


def guest_with(**changes: object) -> Guest:
    spec = {"id": "i", "disk": "d", "disk_format": DiskFormat.RAW, "memory_mib": 64, "vcpus": 1}
    fields = {"desktop": str(uuid.UUID(int=1)), "boot": 1, "disk": Path("/d")}
    for name, value in changes.items():
        (fields if name in {"desktop", "boot", "disk", "kernel"} else spec)[name] = value
    return Guest(spec=ImageSpec(**spec), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"desktop": "../x"},
        {"desktop": str(uuid.UUID(int=1)).replace("-", "")},
        {"boot": -1},
        {"disk": Path("relative")},
        {"disk": Path("/a/../b")},
        {"memory_mib": 0},
        {"vcpus": -3},
        {"video": "qxl' heads='4"},
        {"disk": Path("/a\nb")},
        {"kernel": Path("/a\tb")},
        {"kernel": Path("/k"), "cmdline": "a\0b"},
        {"kernel": Path("/k"), "cmdline": "a\rb"},
        {"kernel": Path("/k"), "cmdline": "\x1b[2J"},
    ],
    ids=str,
)
def test_what_cannot_be_a_guest_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(HypervisorError):
        domain(guest_with(**changes), Machine("qemu", None, "none"), SERIAL)


def test_a_socket_path_that_the_kernel_would_cut_is_refused() -> None:
    with pytest.raises(HypervisorError, match="PUPITRE_HOME"):
        domain(guest_with(), Machine("qemu", None, "none"), Path("/" + "x" * 107))


@pytest.mark.parametrize(
    "metadata", ["", "<a/>", "<a desktop='x' boot='1'/>", "<!DOCTYPE a [<!ENTITY b 'c'>]><a boot='&b;'/>"]
)
def test_metadata_that_is_not_ours_is_refused(metadata: str) -> None:
    with pytest.raises(HypervisorError):
        identity(metadata)
