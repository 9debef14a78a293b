"""`pupitre host`: the host agent as a process."""

import functools

from pupitre import config, pki
from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.host import hypervisors, isolation
from pupitre.host.agent import HostAgent, journal_path
from pupitre.host.console import ConsoleServer
from pupitre.host.isolation import Paths
from pupitre.host.journal import Journal
from pupitre.host.overlays import Overlays
from pupitre.images.store import ImageStore
from pupitre.ops import Ops, run_process
from pupitre.splice import prepare_process
from pupitre.wire.link import Link


def main() -> int:
    """Run as a process; the exit code. May first start this program anew in a namespace of its own."""
    paths = isolation.enter(config.load())
    prepare_process()
    return run_process("host", functools.partial(run, paths))


async def run(paths: Paths, settings: Settings, ops: Ops) -> None:
    """Serve until cancelled."""
    role = pki.host_role(settings.host_name)
    certificates = pki.directory(settings, role)
    overlays = Overlays(paths.overlays)
    overlays.open()
    hypervisor = hypervisors.choose(settings, paths)
    journal = Journal(journal_path(settings))
    agent = HostAgent(settings, hypervisor, overlays, ImageStore(paths.images), journal)
    console = ConsoleServer(
        settings.host_name, certificates, agent, settings.host_dir, settings.host_address, settings.console_port
    )

    def broker_changed(connected: bool) -> None:
        if connected:
            agent.report_all()
        else:
            ops.not_ready("the message broker is away")
        if connected and started:
            ops.ready()

    started = False
    link = Link(
        settings.nats_url,
        role,
        pki.client_context(certificates, role),
        registry=ops.registry,
        on_change=broker_changed,
    )
    try:
        await hypervisor.open()
        try:
            await console.start()
        except OSError as error:
            where = f"{settings.host_address}:{settings.console_port}"
            raise SetupError(
                f"The console server cannot listen on {where}: {error.strerror}.",
                "Choose another console_port, or 0 for a free one.",
            ) from error
        await link.open()
        await agent.start(link, console)
        started = True
        ops.ready()
        await agent.run()
    finally:
        if started:
            await agent.stop()
        await console.stop()
        await link.close()
        await hypervisor.close()
        journal.close()
