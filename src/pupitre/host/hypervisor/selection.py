"""Selection of the `Hypervisor` and the `Disks` by a setting, and libvirt's own settings for the embedded one."""

import os
import shutil
from pathlib import Path

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.host.hypervisor import kvm
from pupitre.host.hypervisor.confinement import require_user
from pupitre.host.hypervisor.domain_xml import Machine
from pupitre.host.hypervisor.isolation import QEMU_USER, Paths
from pupitre.host.hypervisor.libvirt_driver import Connection, LibvirtHypervisor
from pupitre.host.hypervisor.overlays import Disks, NoDisks, Overlays
from pupitre.host.hypervisor.port import Hypervisor
from pupitre.host.simulation.hypervisor import SimulatedHypervisor

EMULATOR = "qemu-system-x86_64"
WITH_DISKS = "?disks"
"""Ends the name of a simulated hypervisor whose desktops have disks all the same, for tests of what is left over."""


def choose(settings: Settings, paths: Paths) -> Hypervisor:
    """Hypervisor that the settings choose, not yet open.

    Raises `SetupError` when the machine lacks what the setting needs.
    """
    uri = settings.hypervisor
    if uri.startswith("simulated://"):
        name = uri.removeprefix("simulated://").removesuffix(WITH_DISKS)
        return SimulatedHypervisor.named(name, paths.serials, settings.host_memory_mib)
    embedded = uri.startswith("qemu:///embed")
    connection = Connection(
        uri=uri,
        serials=paths.serials,
        overlays=paths.overlays,
        root=paths.embed if embedded else None,
        memory_mib=settings.host_memory_mib,
        mandatory=settings.require_confinement == "mandatory",
    )
    if uri.startswith("test:"):
        return LibvirtHypervisor(connection, Machine("test", emulator=None, network="none"))
    require_user(settings, paths)
    if embedded:
        write_qemu_conf(paths, mandatory=connection.mandatory)
    machine = Machine(
        accelerator="kvm" if _use_kvm(settings) else "qemu",
        emulator=Path(shutil.which(EMULATOR) or f"/usr/bin/{EMULATOR}"),
        network=settings.guest_network,
        shared_images=embedded and os.geteuid() == 0,
    )
    return LibvirtHypervisor(connection, machine)


def disks(settings: Settings, paths: Paths) -> Disks:
    """Disks of the desktops, ready to use."""
    if settings.hypervisor.startswith("simulated://") and not settings.hypervisor.endswith(WITH_DISKS):
        return NoDisks(paths.overlays)
    overlays = Overlays(paths.overlays)
    overlays.open()
    return overlays


def _use_kvm(settings: Settings) -> bool:
    if settings.accelerator == "tcg":
        return False
    verdict = kvm.probe()
    if settings.accelerator == "kvm" and not verdict.usable:
        raise SetupError(verdict.sentence, 'Or set accelerator = "auto".')
    return verdict.usable


def write_qemu_conf(paths: Paths, *, mandatory: bool = False) -> None:
    """Settings of libvirt's QEMU driver, read when the embed root is opened. See its qemu.conf.

    The emulator's own log is a plain file below the root (`stdio_handler`), as there is no
    virtlogd; guests cannot write to it. libvirt's private /dev would hide the covered
    /dev/kvm from us (`namespaces`), and owners need no record on the files (`remember_owner`):
    an overlay is root's before and after. `capability_filters` keeps libvirt from asking QEMU for
    each of 400 CPU properties, one by one, at every start: 0.1 s instead of 0.4 s. The answers only
    serve to move a running guest to another host.
    """
    lines = [
        'stdio_handler = "file"',
        "seccomp_sandbox = 1",
        "namespaces = []",
        "remember_owner = 0",
        'capability_filters = ["cpu-unavailable-features"]',
    ]
    if mandatory:
        lines.append("security_require_confined = 1")
    if os.geteuid() == 0:
        user, group = (QEMU_USER, _kvm_group() or QEMU_USER) if paths.isolated else ("root", "root")
        lines += [f'user = "{user}"', f'group = "{group}"']
    folder = paths.embed / "etc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "qemu.conf").write_text("\n".join(lines) + "\n")


def _kvm_group() -> str | None:
    """The group that may use /dev/kvm, as a number in libvirt's form; None if there is none."""
    try:
        device = kvm.DEVICE.stat()
    except OSError:
        return None
    return f"+{device.st_gid}" if device.st_gid and device.st_mode & 0o060 == 0o060 else None
