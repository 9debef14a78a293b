"""Why a guest did not start, found by looking, not by reading QEMU's words.

QEMU's messages change with every version and quote file names; the files, the disk
and the emulator can be asked. What was said is only added where nothing was found.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from pupitre.errors import HypervisorError, ImageFault
from pupitre.host.hypervisor.domain_xml import Machine
from pupitre.host.hypervisor.port import Guest
from pupitre.timings import DISK_CHECK_LIMIT

LEAST_FREE_MIB = 16
"""Less than this where overlays are, and QEMU cannot even write its first cluster."""


def explain(machine: Machine, guest: Guest | None, said: str) -> HypervisorError:
    """One sentence with the mend. ``said`` is libvirt's message. Blocks: runs ``qemu-img``."""
    emulator = machine.emulator
    if emulator and not os.access(emulator, os.X_OK):
        return HypervisorError(
            f"The emulator {emulator} is missing or may not be run. Install it: apt-get install qemu-system-x86."
        )
    if guest is not None:
        for path in (guest.kernel, guest.initrd, guest.cdrom, guest.backing):
            if path and not path.is_file():
                return ImageFault(
                    f"The image file {path.name} is missing on this host. Build or import the image again."
                )
        if fault := disk_fault(guest.disk):
            return fault
    return HypervisorError(f"The hypervisor refused to start the guest: {said}.")


def disk_fault(disk: Path) -> ImageFault | None:
    """Fault of the overlay, if one can be seen."""
    if not disk.is_file():
        return ImageFault("The desktop's disk is missing on this host. Stop the desktop and start a new one.")
    if shutil.disk_usage(disk.parent).free < LEAST_FREE_MIB * 2**20:
        return ImageFault(f"The disk that holds the desktops is full ({disk.parent}). Free some space and start again.")
    if not is_qcow2(disk):
        return ImageFault("The desktop's disk is damaged. Stop the desktop and start a new one.")
    return None


def is_qcow2(disk: Path) -> bool:
    """Whether ``qemu-img`` can open it as qcow2, with what is below it. Takes no lock."""
    command = ["qemu-img", "info", "--force-share", "--output=json", "-f", "qcow2", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=DISK_CHECK_LIMIT, check=False)
        return done.returncode == 0 and json.loads(done.stdout)["format"] == "qcow2"
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return False
