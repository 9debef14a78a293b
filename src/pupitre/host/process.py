"""`pupitre host`: the host agent as a process."""

import asyncio
import functools
import subprocess

import structlog

from pupitre import config
from pupitre.config import Settings
from pupitre.domain.warning import HostWarning, WarningCode, warn
from pupitre.errors import SetupError
from pupitre.host.agent import HostAgent, journal_path
from pupitre.host.console.tickets import ConsoleServer
from pupitre.host.hypervisor import isolation, selection
from pupitre.host.hypervisor.isolation import Paths
from pupitre.host.journal import Journal
from pupitre.images.store import ImageStore
from pupitre.net.ops import Ops, run_process
from pupitre.net.splice import prepare_process
from pupitre.pki import issuing
from pupitre.pki.credentials import Credentials
from pupitre.wire.connection import BrokerConnection

log = structlog.get_logger(__name__)


def main() -> int:
    """Run as a process; the exit code. May first start this program anew in a namespace of its own."""
    paths = isolation.enter(config.load())
    prepare_process()
    return run_process("host", functools.partial(run, paths))


async def run(paths: Paths, settings: Settings, ops: Ops) -> None:
    """Serve until cancelled."""
    role = issuing.host_role(settings.host_name)
    certificates = issuing.directory(settings, role)

    def certificates_seen() -> None:
        agent.warn("certificate", *(_warning(name, left) for name, left in credentials.near_its_end()))

    credentials = Credentials(settings, ops.registry, on_look=certificates_seen)

    def certificate_changed() -> None:
        console.reload()
        broker.use(issuing.client_context(certificates, role))

    credentials.keep(role, certificate_changed)
    disks = selection.disks(settings, paths)
    hypervisor = selection.choose(settings, paths)
    journal = Journal(journal_path(settings))
    agent = HostAgent(settings, hypervisor, disks, ImageStore(paths.images), journal)
    console = ConsoleServer(
        settings.host_name,
        certificates,
        agent,
        settings.host_dir,
        settings.host_address,
        settings.console_port,
        settings.viewer_port,
    )

    def broker_changed(connected: bool) -> None:
        if connected:
            agent.report_all()
        else:
            ops.not_ready("the message broker is away")
        if connected and started:
            ops.ready()

    started = False
    broker = BrokerConnection(
        settings.nats_url,
        role,
        issuing.client_context(certificates, role),
        registry=ops.registry,
        on_change=broker_changed,
    )
    try:
        await hypervisor.open()
        try:
            await console.start()
        except OSError as error:
            ports = " and ".join(str(p) for p in (settings.console_port, settings.viewer_port) if p is not None)
            raise SetupError(
                f"The console server cannot listen on {settings.host_address}, port {ports}: {error.strerror}.",
                "Choose another console_port or viewer_port, or 0 for a free one.",
            ) from error
        broker.spawn(credentials.watch())
        await broker.open()
        await agent.start(broker, console)
        started = True
        ops.ready()
        power_off = await agent.run()
    finally:
        if started:
            await agent.stop()
        await console.stop()
        await broker.close()
        await hypervisor.close()
        await journal.close()
    if power_off:
        await shut_machine_down(settings.host_power_off)


def _warning(certificate: str, days_left: float) -> HostWarning:
    code = WarningCode.CERTIFICATE_EXPIRES if days_left > 0 else WarningCode.CERTIFICATE_EXPIRED
    return warn(code, int(days_left), certificate)


async def shut_machine_down(command: tuple[str, ...]) -> None:
    """Run what shuts this machine down; without it, only this process ends. Raises `SetupError`."""
    log.info("host_down", command=list(command))
    if not command:
        return
    run = functools.partial(subprocess.run, command, stdin=subprocess.DEVNULL, check=False)
    try:
        done = await asyncio.to_thread(run)
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be run: {error.strerror}.", "See the setting host_power_off.") from error
    if code := done.returncode:
        raise SetupError(f"{command[0]} ended with exit code {code}.", "See the setting host_power_off.")
