"""tiny: Debian's cloud kernel with BusyBox, a shell on the screen in seconds, booted without a boot loader.

The initramfs is the whole system; the disk holds the home folder, so that the
desktop's overlay keeps the work. The power button is an orderly power-off.
"""

from pathlib import Path
from typing import BinaryIO

from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.images.modules import Modules
from pupitre.images.programs import run
from pupitre.images.progress import Progress, part
from pupitre.images.recipes import debian, initramfs
from pupitre.images.recipes.recipe import Made, Recipe

HERE = Path(__file__).parent
FILES = HERE / "files"
DISK_MIB = 1024
MODULES = ["virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "ext4", "button", "evdev"]
LIBRARIES = "lib/x86_64-linux-gnu"
LOADER = "ld-linux-x86-64.so.2"
LIBC = ["libc.so.6", "libresolv.so.2"]
"""What BusyBox is linked with. The static one looks names up by libraries that are not there, and ends with a fault."""
# The screen is the last console, and so the one that /dev/console means.
CMDLINE = "console=ttyS0 console=tty0 quiet loglevel=3 rdinit=/init mitigations=off random.trust_cpu=on"


def make(folder: Path, progress: Progress) -> Made:
    system = folder / "system"
    packages = [debian.newest_kernel("linux-image-cloud-amd64"), "busybox", "libc6"]
    debian.unpack(packages, system, part(progress, 0.0, 0.8))
    progress("Writing the initramfs", 0.8)
    initrd = folder / "initrd"
    with initrd.open("wb") as out:
        _initramfs(out, system)
    progress("Making the disk", 0.9)
    disk = _disk(folder)
    (kernel,) = (system / "boot").glob("vmlinuz-*")
    spec = ImageSpec(
        id="tiny", disk="disk", disk_format=DiskFormat.QCOW2, memory_mib=160, vcpus=1,
        kernel="kernel", initrd="initrd", cmdline=CMDLINE, video="vga", disk_gib=1,
    )  # fmt: skip
    return Made(spec, {"disk": disk, "kernel": kernel, "initrd": initrd})


def _initramfs(out: BinaryIO, system: Path) -> None:
    (folder,) = (system / "lib/modules").iterdir()
    names = (
        ("init", "init", 0o755),
        ("bin/shell", "shell", 0o755),
        ("etc/inittab", "inittab", 0o644),
        ("etc/motd", "motd", 0o644),
        ("etc/acpi/PWRF/00000080", "power_button", 0o755),
        ("etc/nsswitch.conf", "nsswitch.conf", 0o644),
        ("etc/hosts", "hosts", 0o644),
        ("etc/udhcpc/default.script", "udhcpc", 0o755),
    )
    initramfs.write(
        out,
        busybox=system / "bin/busybox",
        modules=Modules(folder),
        load=MODULES,
        files=[
            *((path, (FILES / source).read_bytes(), mode) for path, source, mode in names),
            *((f"{LIBRARIES}/{name}", (system / LIBRARIES / name).read_bytes(), 0o755) for name in LIBC),
            (f"lib64/{LOADER}", (system / LIBRARIES / LOADER).read_bytes(), 0o755),
            ("etc/passwd", b"root:x:0:0:root:/home/student:/bin/sh\n", 0o644),
            ("etc/group", b"root:x:0:\n", 0o644),
        ],
    )


def _disk(folder: Path) -> Path:
    raw, disk = folder / "disk.raw", folder / "disk.qcow2"
    with raw.open("wb") as file:
        file.truncate(DISK_MIB << 20)
    options = ["-q", "-F", "-t", "ext4", "-L", "home", "-m", "0", "-E", "lazy_itable_init=0,nodiscard"]
    run(["mke2fs", *options, "-N", "16384", "-J", "size=8", raw])
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    return disk


RECIPE = Recipe(
    id="tiny",
    name="Pupitre tiny",
    description="A Linux shell that is there in seconds: Debian's kernel with BusyBox.",
    programs=("apt-get", "apt-cache", "dpkg-deb", "mke2fs", "qemu-img"),
    space_mib=300,
    source=HERE,
    make=make,
)
