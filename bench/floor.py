"""The floor of ``python -m bench start``: libvirt alone, asked for the same domain on an overlay of the same size.

A process of its own (``python -m bench.floor``), with an embed root of its own, in
the same kind of namespace as the host agent. For each line on standard input it starts
a guest and removes it again, and answers with the milliseconds of the start; the
overlay is made before the clock runs.
"""

import asyncio
import sys
import time

import uuid_utils

from pupitre import config
from pupitre.host.hypervisor import isolation, selection
from pupitre.host.hypervisor.isolation import Paths
from pupitre.host.hypervisor.overlays import Overlays
from pupitre.host.hypervisor.port import Guest, Hypervisor
from pupitre.images.store import ImageStore
from pupitre.runtime.log import set_up_logging


async def serve(paths: Paths, image: str) -> None:
    hypervisor = selection.choose(config.load(), paths)
    await hypervisor.open()
    overlays = Overlays(paths.overlays)
    overlays.open()
    print("ready", flush=True)
    try:
        while await asyncio.to_thread(sys.stdin.readline):
            print(await _start(hypervisor, overlays, ImageStore(paths.images), image), flush=True)
    finally:
        await hypervisor.close()


async def _start(hypervisor: Hypervisor, overlays: Overlays, store: ImageStore, image: str) -> float:
    """Milliseconds from the call to a running domain."""
    desktop, spec = str(uuid_utils.uuid7()), store.spec(image)
    backing = store.blob(spec.disk)
    disk = await overlays.ensure(desktop, backing, spec.disk_format, spec.disk_gib)
    guest = Guest(
        desktop=desktop,
        boot=1,
        spec=spec,
        disk=disk,
        backing=backing,
        kernel=store.blob(spec.kernel) if spec.kernel else None,
        initrd=store.blob(spec.initrd) if spec.initrd else None,
    )
    begun = time.perf_counter()
    await hypervisor.ensure_running(guest)
    took = time.perf_counter() - begun
    await hypervisor.ensure_gone(desktop)
    await overlays.ensure_gone(desktop)
    return round(took * 1000, 2)


if __name__ == "__main__":
    set_up_logging(config.load(), "floor")
    asyncio.run(serve(isolation.enter(config.load()), sys.argv[1]))
