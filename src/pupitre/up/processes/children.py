"""Children that `up` runs, in order, each with the environment that it adds to the settings."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.up.hosts import LocalHost, local_hosts
from pupitre.up.processes.child import ChildSpec
from pupitre.up.processes.ports import free_port

PUPITRE = (sys.executable, "-m", "pupitre")
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def environment(settings: Settings) -> dict[str, str]:
    """Settings that all children share: internal ports are chosen here, once for every restart of a child."""
    taken = {settings.portal_port, settings.console_port}
    chosen = {"PUPITRE_HOME": str(settings.home), "PUPITRE_GUESTS_ON_STOP": "destroy"}
    if not settings.portal_port:
        chosen["PUPITRE_PORTAL_PORT"] = str(free_port(taken))
    if not settings.console_port:
        chosen["PUPITRE_CONSOLE_PORT"] = str(free_port(taken))
    if "nats_url" not in settings.model_fields_set:
        chosen["PUPITRE_NATS_URL"] = f"tls://127.0.0.1:{free_port(taken)}"
    return chosen


def runs_broker(settings: Settings) -> bool:
    """Whether the broker is ours to run: any but one on this machine's loopback is somebody else's."""
    return all((urlsplit(url.strip()).hostname or "") in LOOPBACK for url in settings.nats_url.split(","))


def stages(settings: Settings, shared: dict[str, str]) -> list[list[ChildSpec]]:
    """The children in the order in which they start. ``settings`` already holds what ``shared`` says."""
    hosts = _hosts(settings, shared)
    found = [
        [
            # They find each other by themselves, in any order; together they start in half the time.
            ChildSpec("cluster", (*PUPITRE, "cluster"), shared | _ops_port(settings, 0)),
            ChildSpec("endpoint", (*PUPITRE, "endpoint"), shared | _ops_port(settings, 1)),
            *(
                replace(spec, environment={**spec.environment, **_ops_port(settings, number)})
                for number, spec in enumerate(hosts, 3)
            ),
            ChildSpec("web", (*PUPITRE, "web"), shared | _ops_port(settings, 2), stop_within=5),
        ],
    ]
    if runs_broker(settings):
        found.insert(0, [_broker(settings, shared)])
    return found


def _ops_port(settings: Settings, number: int) -> dict[str, str]:
    """Each process has a port of its own, the same at every start."""
    return {"PUPITRE_OPS_PORT": str(settings.ops_port + number)} if settings.ops_port else {}


def child_name(settings: Settings, host: LocalHost) -> str:
    """One alone is simply the host."""
    return host.name if settings.hosts > 1 else "host"


def _hosts(settings: Settings, shared: dict[str, str]) -> list[ChildSpec]:
    taken = {settings.portal_port, settings.console_port}
    found: list[ChildSpec] = []
    for host in local_hosts(settings):
        host.folder.mkdir(parents=True, exist_ok=True)
        environment = {"PUPITRE_CONSOLE_PORT": str(settings.console_port), **shared, "PUPITRE_HOST_NAME": host.name}
        if host.memory_mib:
            environment["PUPITRE_HOST_MEMORY_MIB"] = str(host.memory_mib)
        if found:
            environment["PUPITRE_CONSOLE_PORT"] = str(free_port(taken))
            if settings.viewer_port is not None:
                environment["PUPITRE_VIEWER_PORT"] = "0"
        name = child_name(settings, host)
        # Its guests are ended first, each with a moment to shut down.
        spec = ChildSpec(name, (*PUPITRE, "host"), environment, stop_within=30, rest_mark=host.powered_off)
        found.append(spec)
    return found


def _broker(settings: Settings, shared: dict[str, str]) -> ChildSpec:
    from pupitre.wire.broker import write_config

    port = urlsplit(settings.nats_url.split(",")[0].strip()).port or 4222
    config = write_config(settings, port=port, hosts=[host.name for host in local_hosts(settings)])
    return ChildSpec(
        "nats",
        (str(program("nats-server")), "-c", str(config)),
        {"PUPITRE_HOME": str(settings.home)},
        stop_within=5,
        ready_line=b"Server is ready",
        inherits=False,
    )


def program(name: str) -> Path:
    """A program that came with our own packages. Raises `SetupError`."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise SetupError(f"The program {name} is missing.", "Run: scripts/setup run")
    return Path(found)


def image_builder(settings: Settings, image: str) -> ChildSpec:
    """Builds an image behind the backs of those who work: last in line for processor and disk."""
    gently = ("nice", "-n", "19", "ionice", "-c", "3")
    return ChildSpec(
        f"image {image}",
        (*gently, *PUPITRE, "image", "build", image),
        {"PUPITRE_HOME": str(settings.home)},
        stop_within=10,
    )


def renewal(shared: dict[str, str]) -> ChildSpec:
    """Renews the message broker's certificate."""
    return ChildSpec("renewal", (sys.executable, "-m", "pupitre.up.renewal"), shared)


def pruning(settings: Settings) -> ChildSpec:
    """Takes away what the databases have kept long enough, last in line for processor and disk."""
    gently = ("nice", "-n", "19", "ionice", "-c", "3")
    return ChildSpec("prune", (*gently, *PUPITRE, "db", "prune"), {"PUPITRE_HOME": str(settings.home)}, stop_within=10)


def registration(shared: dict[str, str], hosts: list[ChildSpec]) -> ChildSpec:
    """Registers ``hosts``, each with its console port."""
    where = [f"{spec.environment['PUPITRE_HOST_NAME']}:{spec.environment['PUPITRE_CONSOLE_PORT']}" for spec in hosts]
    return ChildSpec("register", (sys.executable, "-m", "pupitre.up.registration", *where), shared)
