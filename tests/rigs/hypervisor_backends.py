"""What the contract suite runs on, and what each of them can show.

libvirt's embedded driver allows one root per process, so real guests of one test
process share one folder, short enough for socket paths.
"""

import atexit
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pupitre.config import Settings
from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.host.hypervisor import isolation
from pupitre.host.hypervisor.isolation import Paths
from pupitre.host.hypervisor.overlays import Overlays
from pupitre.host.hypervisor.port import Guest, Hypervisor
from pupitre.host.hypervisor.selection import choose

SPEC = ImageSpec("empty", disk="", disk_format=DiskFormat.ISO, memory_mib=64, vcpus=1)
"""No system at all: the firmware looks for one for ever, which is all a hypervisor needs."""


@dataclass(frozen=True, slots=True)
class Backend:
    """``console``, ``serial``: whether there are such sockets.

    ``hears``: whether a guest without a system ends when its power button is pressed.
    """

    uri: str
    console: bool
    serial: bool
    hears: bool


BACKENDS = [
    Backend("simulated://prompt", console=True, serial=True, hears=True),
    # libvirt's own double: no OpenGraphicsFD, no devices behind the paths
    Backend("test:///default", console=False, serial=False, hears=True),
    Backend("qemu:///embed", console=True, serial=True, hears=False),
]


@cache
def home() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pup-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def settings(uri: str, folder: Path | None = None) -> Settings:
    return Settings(home=folder or home(), image_store=(folder or home()) / "images", hypervisor=uri, accelerator="tcg")


def paths(uri: str, folder: Path | None = None) -> Paths:
    """Where things lie without a namespace of our own, which a test process cannot enter."""
    return isolation.host_paths(settings(uri, folder))


def hypervisor(uri: str, folder: Path | None = None) -> Hypervisor:
    return choose(settings(uri, folder), paths(uri, folder))


def overlays(uri: str, folder: Path | None = None) -> Overlays:
    there = Overlays(paths(uri, folder).overlays)
    there.open()
    return there


async def guest(uri: str, boot: int = 1, desktop: str | None = None) -> Guest:
    desktop = desktop or str(uuid.uuid4())
    return Guest(desktop, boot, SPEC, await overlays(uri).ensure(desktop, None, None, 1))
