"""`pupitre cluster`: the cluster server as a process."""

from pupitre.cluster.server import ClusterServer
from pupitre.config import Settings
from pupitre.net.ops import Ops
from pupitre.pki import issuing
from pupitre.pki.credentials import Credentials
from pupitre.pki.signing import ORDER_KEY, ensure_key
from pupitre.store.cluster import ClusterStore
from pupitre.store.sql.engine import open_database
from pupitre.store.sql.health import telling
from pupitre.wire.connection import BrokerConnection

ROLE = "cluster"


async def run(settings: Settings, ops: Ops) -> None:
    """Serve until cancelled."""
    certificates = issuing.directory(settings, ROLE)
    credentials = Credentials(settings, ops.registry)
    credentials.keep(ROLE, lambda: broker.use(issuing.client_context(certificates, ROLE)))
    tls = issuing.client_context(certificates, ROLE)
    store = ClusterStore(open_database(settings, "cluster", "cluster"))
    server: ClusterServer | None = None
    key = ensure_key(issuing.directory(settings, ROLE) / ORDER_KEY)

    def broker_changed(connected: bool) -> None:
        if not connected:
            ops.not_ready("the message broker is away")
        elif server and server.leads:  # not the first time, and not while it stands by
            broker.spawn(server.resume())
            ops.ready()

    broker = BrokerConnection(settings.nats_url, ROLE, tls, registry=ops.registry, on_change=broker_changed)
    try:
        broker.spawn(credentials.watch())
        await broker.open()
        server = ClusterServer(settings, store, broker, ops.registry, key)
        async with telling(ops, store.database):
            await server.run(on_started=ops.ready)
    finally:
        await broker.close()
        await store.close()
