"""An initramfs of BusyBox, the modules a guest needs before anything else, and a recipe's own files."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from pupitre.images.cpio import Archive
from pupitre.images.modules import Modules
from pupitre.images.programs import run

FOLDERS = "bin dev etc home lib lib/modules proc root run sys usr usr/share var"


def write(
    out: BinaryIO, *, busybox: Path, modules: Modules, load: list[str], files: Iterable[tuple[str, bytes, int]]
) -> None:
    """``load`` are the modules to put in; ``/lib/modules/order`` lists them as they must be loaded.

    ``files`` are path, content and mode; their folders are made.
    """
    archive = Archive(out)
    made = set(FOLDERS.split())
    for path in FOLDERS.split():
        archive.folder(path)
    archive.folder("tmp", 0o1777)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for applet in run([busybox, "--list"]).split():
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    archive.link("sbin", "bin")
    archive.link("usr/bin", "../bin")
    archive.link("usr/sbin", "../bin")
    for path, data, mode in files:
        for parent in reversed(Path(path).parents[:-1]):
            if str(parent) not in made:
                made.add(str(parent))
                archive.folder(str(parent))
        archive.file(path, data, mode)
    order = modules.load_order(load)
    for name, data in order:
        archive.file(f"lib/modules/{name}.ko", data)
    archive.file("lib/modules/order", "".join(f"{name}\n" for name, _ in order).encode())
    archive.close()
