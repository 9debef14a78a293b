"""A host process for tests, without agent or network: enters its namespace as `pupitre host` does,
then carries out the orders on its standard input, one a line, and answers each with a line of JSON.
"""

import asyncio
import json
import sys
from typing import Any

from pupitre.config import Settings, load
from pupitre.errors import PupitreError
from pupitre.host.hypervisor import isolation
from pupitre.host.hypervisor.overlays import Overlays
from pupitre.host.hypervisor.port import Guest, Hypervisor
from pupitre.host.hypervisor.selection import choose
from pupitre.runtime.log import set_up_logging
from tests.rigs.hypervisor_backends import SPEC


async def obey(order: list[str], host: Hypervisor, disks: Overlays) -> Any:
    match order:
        case ["start", desktop, boot]:
            disk = await disks.ensure(desktop, None, None, 1)
            await host.ensure_running(Guest(desktop, int(boot), SPEC, disk))
        case ["gone", desktop]:
            await host.ensure_gone(desktop)
            await disks.ensure_gone(desktop)
        case ["guests"]:
            return {seen.desktop: [seen.boot, seen.state] for seen in (await host.guests()).values()}
        case ["disks"]:
            return sorted(disks.all())
        case ["greeting", desktop]:
            with await host.console(desktop) as console:
                return (await asyncio.get_running_loop().sock_recv(console, 12)).decode()
        case ["picture", desktop]:
            return (await host.screenshot(desktop))[1:4].decode()
        case ["line", desktop]:
            _, writer = await asyncio.open_unix_connection(await host.serial(desktop))
            writer.close()
        case ["change"]:
            async for change in host.changes():
                return [change.desktop, change.boot, change.state, change.reason]
        case _:
            raise ValueError(order)
    return None


async def serve(settings: Settings, paths: isolation.Paths) -> None:
    host, disks = choose(settings, paths), Overlays(paths.overlays)
    disks.open()
    await host.open()
    print(json.dumps({"isolated": paths.isolated}), flush=True)
    while order := (await asyncio.to_thread(sys.stdin.readline)).split():
        try:
            answer = {"answer": await obey(order, host, disks)}
        except PupitreError as error:
            answer = {"error": type(error).__name__, "reason": error.reason}
        print(json.dumps(answer), flush=True)
    await host.close()


if __name__ == "__main__":
    loaded = load()
    set_up_logging(loaded, "host")
    asyncio.run(serve(loaded, isolation.enter(loaded)))
