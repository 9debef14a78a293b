"""The domain XML: read back, it has the devices that were meant, whatever the strings say."""

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree

from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import HypervisorError
from pupitre.host.domain_xml import Machine, domain, identity, validate
from pupitre.host.hypervisor import Guest

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
        {"kernel": Path("/k"), "cmdline": "a\0b"},
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
