"""debian-desktop: a graphical Debian, straight to the desktop of the user ``student``.

Debian's packages, set up by mmdebstrap without mounts, become a file system that
``mke2fs -d`` writes and qemu-img packs. It boots without a boot loader: the
kernel and a small initramfs of ours lie beside the disk, so that an upgrade in
the guest cannot make it unbootable.
"""

import os
import re
import shutil
import stat
from collections import deque
from pathlib import Path

from PIL import Image as Picture

from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import SetupError
from pupitre.images.modules import Modules
from pupitre.images.programs import find, run
from pupitre.images.progress import Progress, part
from pupitre.images.recipes import debian, initramfs
from pupitre.images.recipes.namespace import admit, subordinate_root, workplace
from pupitre.images.recipes.recipe import Made, Recipe

HERE = Path(__file__).parent
FILES = HERE / "files"
DISK_GIB = 8
SPACE_MIB = 4096
FAILED = "pupitre: failed when "
"""How the customize hook begins the line that names its step."""
BASE = "systemd-sysv udev dbus systemd-resolved kmod passwd sudo procps iproute2 iputils-ping less nano"
GRAPHICS = "xserver-xorg-core xserver-xorg-input-libinput xinit x11-xserver-utils icewm fonts-dejavu-core"
DESKTOP = "lxterminal mousepad pcmanfm adwaita-icon-theme python3 idle"
PACKAGES = f"{BASE} {GRAPHICS} {DESKTOP}".split()
LEFT_OUT = ["man", "doc", "info", "lintian", "locale", "groff", "help"]
EARLY_MODULES = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "virtio_gpu", "evdev", "button"]
KEPT_MODULES = [
    "arch",
    "crypto",
    "lib",
    "fs",
    "net/core",
    "net/ipv4",
    "net/ipv6",
    "net/packet",
    "net/unix",
    "drivers/virtio",
    "drivers/block",
    "drivers/char",
    "drivers/cdrom",
    "drivers/hid",
    "drivers/input",
    "drivers/usb/core",
    "drivers/usb/host",
    "drivers/usb/storage",
    "drivers/scsi",
    "drivers/ata",
    "drivers/net/virtio_net.ko",
    "drivers/net/net_failover.ko",
    "net/core/failover.ko",
    "drivers/gpu/drm/virtio",
    "drivers/gpu/drm/drm.ko",
    "drivers/gpu/drm/drm_kms_helper.ko",
    "drivers/gpu/drm/drm_shmem_helper.ko",
    "drivers/acpi",
    "drivers/i2c",
]
"""What of the kernel's modules goes into the guest, below ``kernel``: the rest drives hardware it never sees."""
CMDLINE = (
    "root=/dev/vda rw quiet loglevel=3 net.ifnames=0 mitigations=off random.trust_cpu=on vt.global_cursor_default=0"
)


def make(folder: Path, progress: Progress) -> Made:
    system = folder / "system"
    kernel = debian.newest_kernel("linux-image-amd64")
    debian.unpack([kernel, "busybox-static"], system, part(progress, 0.0, 0.1))
    (modules,) = (system / "lib/modules").iterdir()
    with (folder / "initrd").open("wb") as out:
        initramfs.write(
            out,
            busybox=system / "bin/busybox",
            modules=Modules(modules),
            load=EARLY_MODULES,
            files=[("init", (FILES / "init").read_bytes(), 0o755)],
        )
    disk = folder / "disk.qcow2"
    with workplace(folder, SPACE_MIB) as place:
        raw = place / "disk.raw"
        _overlay(place / "overlay", modules)
        _bootstrap(place, raw, part(progress, 0.1, 0.85))
        progress("Packing the disk", 0.85)
        run(
            ["qemu-img", "convert", "-p", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, disk],
            on_line=lambda line: _packed(line, part(progress, 0.85, 1.0)),
        )
        raw.unlink()
    (image,) = (system / "boot").glob("vmlinuz-*")
    spec = ImageSpec(
        id="debian-desktop", disk="disk", disk_format=DiskFormat.QCOW2, memory_mib=1024, vcpus=2,
        kernel="kernel", initrd="initrd", cmdline=CMDLINE, video="virtio", disk_gib=DISK_GIB,
    )  # fmt: skip
    return Made(spec, {"disk": disk, "kernel": image, "initrd": folder / "initrd"})


def _overlay(overlay: Path, modules: Path) -> None:
    """Overlay over Debian: our files, the wallpaper, and the modules a virtual machine can use."""
    shutil.copytree(FILES / "overlay", overlay)
    for script in ("usr/local/bin/student-session", "etc/skel/.icewm/startup"):
        (overlay / script).chmod(0o755)
    kept = overlay / "usr/lib/modules" / modules.name
    kept.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(modules / name, kept)
    for name in KEPT_MODULES:
        source, target = modules / "kernel" / name, kept / "kernel" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy(source, target)
    pictures = overlay / "usr/share/backgrounds"
    pictures.mkdir(parents=True)
    _wallpaper().save(pictures / "pupitre.png")
    _open_to_read(overlay)


def _open_to_read(overlay: Path) -> None:
    """Make files readable whatever umask and modes of the source tree are: a namespace's root reads them as anyone."""
    for path in (overlay, *overlay.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)


def _wallpaper() -> Picture.Image:
    """A quiet slope from deep blue to teal."""
    slope = Picture.linear_gradient("L").rotate(20, resample=Picture.Resampling.BICUBIC, expand=False)
    slope = slope.crop((40, 40, 216, 216)).resize((1280, 800), Picture.Resampling.BICUBIC)
    dark, light = Picture.new("RGB", slope.size, "#14304f"), Picture.new("RGB", slope.size, "#3f8f9b")
    return Picture.composite(light, dark, slope)


def _mode() -> str:
    """Mode in which mmdebstrap can own files: as root, or in a user namespace of its own."""
    if os.geteuid() == 0:
        return "root"
    if find("newuidmap"):
        return "unshare"
    raise SetupError("An ordinary user needs newuidmap to build a Debian.", "Run: sudo apt-get install uidmap")


def _bootstrap(folder: Path, raw: Path, progress: Progress) -> None:
    """Makes ``raw``. In a user namespace, mmdebstrap's root is another user than ours: ``folder`` is open to it."""
    customize, temporary = folder / "customize", folder / "tmp"
    for script in ("customize", "unmount"):
        shutil.copy(FILES / script, folder)
        (folder / script).chmod(0o755)
    temporary.mkdir()
    temporary.chmod(0o755)
    with raw.open("wb") as file:
        file.truncate(DISK_GIB << 30)
    if _mode() == "unshare":
        admit(raw, subordinate_root(), 6)
    follow = _Follow(progress)
    run(
        [
            "mmdebstrap",
            f"--mode={_mode()}",
            "--verbose",
            "--variant=minbase",
            "--format=null",
            f"--include={','.join(PACKAGES)}",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT),
            "--dpkgopt=force-unsafe-io",
            f"--customize-hook={customize}",
            debian.suite(),
            "/dev/null",
            *debian.sources(),
        ],
        env={"TMPDIR": str(temporary)},
        on_line=follow,
        reason=follow.reason,
    )


class _Follow:
    """Turns mmdebstrap's and apt's lines into a step and a fraction."""

    def __init__(self, progress: Progress) -> None:
        self._tell = progress
        self._furthest = 0.0
        self._packages = 0
        self._unpacked = self._ready = 0
        self._hook: deque[str] = deque(maxlen=4)
        self._failed = ""

    def reason(self) -> str | None:
        """Reason of a failure in the customize hook: the last lines it wrote, standard error included."""
        return f"{self._failed} ({' / '.join(self._hook)})" if self._failed else None

    def _progress(self, step: str, fraction: float) -> None:
        """Never backwards: mmdebstrap installs in several rounds."""
        self._furthest = max(self._furthest, fraction)
        self._tell(step, self._furthest)

    def __call__(self, line: str) -> None:
        if found := re.search(r"(\d+) newly installed", line):
            self._packages = int(found[1])
            self._unpacked = self._ready = 0
        elif line.startswith("Get:"):
            self._progress("Downloading Debian packages", 0.05)
        elif line.startswith("Unpacking "):
            self._unpacked += 1
            self._progress(
                "Unpacking Debian packages", 0.15 + 0.35 * self._unpacked / max(self._packages, self._unpacked)
            )
        elif line.startswith("Setting up "):
            self._ready += 1
            self._progress("Setting up Debian packages", 0.5 + 0.35 * self._ready / max(self._packages, self._ready))
        elif line.startswith("I: running --customize-hook"):
            self._hook.clear()
            self._progress("Making the disk", 0.87)
        elif line.startswith(FAILED):
            self._failed = line.removeprefix("pupitre: ")
        elif not self._failed and line.strip():
            self._hook.append(line.strip())


def _packed(line: str, progress: Progress) -> None:
    if found := re.search(r"\((\d+\.\d+)/100%\)", line):
        progress("Packing the disk", float(found[1]) / 100)


RECIPE = Recipe(
    id="debian-desktop",
    name="Debian desktop",
    description="A graphical Debian with terminal, editor, files and Python: straight to the desktop.",
    programs=("apt-get", "apt-cache", "dpkg-deb", "mmdebstrap", "mke2fs", "qemu-img"),
    space_mib=SPACE_MIB,
    source=HERE,
    make=make,
)
