"""Does a guest really run on this machine's KVM? Answered by running one.

``/dev/kvm`` may exist, open and even create a virtual CPU on a machine where no guest
ever gets anywhere. So a child process runs a short loop through ``KVM_RUN`` and
has two seconds for it; it may hang in the kernel without taking anyone with it.

Numbers: Linux, include/uapi/linux/kvm.h; https://docs.kernel.org/virt/kvm/api.html
"""

import ctypes
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

DEVICE = Path("/dev/kvm")
LIMIT = 2.0
"""Seconds for the loop; a working machine needs some twenty milliseconds."""

_CREATE_VM, _GET_VCPU_MMAP_SIZE, _CREATE_VCPU = 0xAE01, 0xAE04, 0xAE41
_SET_USER_MEMORY_REGION, _SET_TSS_ADDR, _RUN = 0x4020AE46, 0xAE47, 0xAE80
_GET_SREGS, _SET_SREGS, _SET_REGS = 0x8138AE83, 0x4138AE84, 0x4090AE82
_EXIT_IO, _EXIT_HLT = 2, 5
# mov ecx,20000000; again: dec ecx; jnz again; mov dx,0x3f8; mov al,'!'; out dx,al; hlt
# The loop takes milliseconds on a processor and seconds where the kernel plays one.
_GUEST_CODE = bytes.fromhex("66b9 002d3101  6649 75fc  ba f803  b0 21  ee  f4")
_GUEST_ADDRESS = 0x1000


class Kvm(StrEnum):
    """Result of the probe."""

    WORKS = "works"
    NO_DEVICE = "no_device"
    NO_CPU_SUPPORT = "no_cpu_support"
    NO_ACCESS = "no_access"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``sentence`` is for people; where something can be done, it says what."""

    kvm: Kvm
    sentence: str

    @property
    def usable(self) -> bool:
        return self.kvm is Kvm.WORKS


def probe(device: Path = DEVICE, cpuinfo: Path = Path("/proc/cpuinfo")) -> Verdict:
    """Blocks for at most about `LIMIT` seconds; a few milliseconds where the answer is plain."""
    try:
        is_device = stat.S_ISCHR(device.stat().st_mode)
    except OSError:
        is_device = False
    if not is_device:
        return Verdict(
            Kvm.NO_DEVICE,
            f"There is no {device}: guests run under emulation, which is slow. "
            "Switch virtualisation on in the machine's firmware, then run: modprobe kvm_intel (or kvm_amd).",
        )
    if not _cpu_flags(cpuinfo) & {"vmx", "svm"}:
        return Verdict(
            Kvm.NO_CPU_SUPPORT,
            f"{device} exists, but the processor offers no virtualisation (neither vmx nor svm): "
            "guests run under emulation, which is slow. In a virtual machine, ask for nested virtualisation.",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Verdict(
            Kvm.NO_ACCESS,
            f"{device} may not be opened: guests run under emulation, which is slow. "
            "Mend it with: adduser YOUR-NAME kvm, and sign in again.",
        )
    fault = run_guest(device)
    if fault:
        return Verdict(
            Kvm.BROKEN, f"{device} opens, but no guest runs on it ({fault}): guests run under emulation, which is slow."
        )
    return Verdict(Kvm.WORKS, f"A guest runs on {device}.")


def run_guest(device: Path, limit: float = LIMIT) -> str | None:
    """Run the loop in a child process. What went wrong, or None."""
    command = [sys.executable, "-I", str(Path(__file__)), str(device)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            said, _ = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            child.kill()
            return f"a loop of milliseconds took more than {limit:g} seconds"
    if child.returncode == 0:
        return None
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the trial ended with {child.returncode}"


def _cpu_flags(cpuinfo: Path) -> set[str]:
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _trial(device: str) -> None:
    """Trial in the child: make a virtual machine of one page and one CPU and run it to its ``hlt``."""
    kvm = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, _CREATE_VM, 0)
    fcntl.ioctl(vm, _SET_TSS_ADDR, 0x7000_0000)  # Intel without "unrestricted guest" wants three pages, anywhere
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(_GUEST_CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    fcntl.ioctl(vm, _SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, _GUEST_ADDRESS, mmap.PAGESIZE, address))
    cpu = fcntl.ioctl(vm, _CREATE_VCPU, 0)
    shared = mmap.mmap(cpu, fcntl.ioctl(kvm, _GET_VCPU_MMAP_SIZE, 0))
    system = bytearray(312)
    fcntl.ioctl(cpu, _GET_SREGS, system)
    struct.pack_into("=QIH", system, 0, 0, 0xFFFF, 0)  # code segment: base 0, selector 0
    fcntl.ioctl(cpu, _SET_SREGS, bytes(system))
    fcntl.ioctl(cpu, _SET_REGS, struct.pack("=16QQQ", *[0] * 16, _GUEST_ADDRESS, 2))
    for wanted in (_EXIT_IO, _EXIT_HLT):
        fcntl.ioctl(cpu, _RUN, 0)
        (reason,) = struct.unpack_from("=I", shared, 8)
        if reason != wanted:
            sys.exit(f"the virtual CPU stopped with exit reason {reason} instead of {wanted}")


if __name__ == "__main__":
    _trial(sys.argv[1])
