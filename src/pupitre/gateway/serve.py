"""The gateway as a process of its own, behind any reverse proxy."""

import uvicorn

from pupitre.config import Settings
from pupitre.gateway.app import create_app
from pupitre.gateway.service import Gateway
from pupitre.gateway.websocket import console_protocol
from pupitre.splice import prepare_process


def run(settings: Settings) -> None:
    """Serve on loopback or ``portal_host``, port ``gateway_port``, until SIGTERM. Raises `SetupError`."""
    gateway = Gateway(settings)
    prepare_process()
    uvicorn.run(
        create_app(gateway, alone=True),
        host=settings.portal_host,
        port=settings.gateway_port,
        ws=console_protocol(gateway),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,  # a picture's request line carries its ticket
        proxy_headers=settings.behind_proxy,
        timeout_graceful_shutdown=10,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
