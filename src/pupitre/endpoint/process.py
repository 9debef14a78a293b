"""`pupitre endpoint`: `WebServerEndpoint` as a process."""

from pupitre.config import Settings
from pupitre.endpoint.endpoint import ROLE, WebServerEndpoint
from pupitre.net.ops import Ops
from pupitre.pki import issuing
from pupitre.pki.credentials import Credentials
from pupitre.store.sql.engine import open_database
from pupitre.store.sql.health import telling


async def run(settings: Settings, ops: Ops) -> None:
    """Serve until cancelled."""
    endpoint = WebServerEndpoint(settings.cluster, ops.registry)
    certificates = issuing.directory(settings, ROLE)
    credentials = Credentials(settings, ops.registry)
    credentials.keep(ROLE, lambda: endpoint.use_certificate(certificates))
    commands, status = (open_database(settings, "endpoint", name) for name in ("commands", "status"))
    endpoint.connect_to_databases(commands, status)
    try:
        async with credentials.watching():
            await endpoint.connect_to_cluster_server(
                certificates,
                settings.nats_url,
                status_update_interval=settings.status_update_interval,
                command_timeout_check_interval=settings.command_timeout_check_interval,
                connection_grace=settings.connection_grace,
                user_in_flight=settings.user_in_flight,
            )
            ops.ready()
            async with telling(ops, commands, status):
                await endpoint.run()
    finally:
        await endpoint.disconnect_from_cluster_server()
