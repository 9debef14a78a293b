"""The Caddy configuration we ship: a console through real Caddy, with TLS in front, to a gateway of its own."""

import asyncio
import datetime
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pupitre.up.processes.ports import free_port
from tests import ROOT
from tests.rigs.console_rig import GREETING, SESSION, Rig, console_rig, listening

pytestmark = pytest.mark.anyio

CADDYFILE = ROOT / "deploy" / "Caddyfile"
CADDY = Path(sys.executable).with_name("caddy")
OPS = [f"{prefix}/{name}" for prefix in ("", "/gateway") for name in ("healthz", "readyz", "metrics")]
PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nportal"


@dataclass
class Site:
    rig: Rig
    port: int
    trust: ssl.SSLContext


def certify(folder: Path) -> ssl.SSLContext:
    """A certificate for ``localhost``, and a context that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "site.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "site.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ssl.create_default_context(cafile=str(folder / "site.crt"))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    trust = certify(tmp_path)

    async def portal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(PAGE)
        await writer.drain()
        writer.close()

    port = free_port()
    upstream = await asyncio.start_server(portal, "127.0.0.1", 0)
    async with console_rig(tmp_path / "home", origin=f"https://localhost:{port}") as rig:
        environment = {
            **os.environ,
            "XDG_DATA_HOME": str(tmp_path / "caddy"),
            "XDG_CONFIG_HOME": str(tmp_path / "caddy"),
            "PUPITRE_SITE": f"https://localhost:{port}",
            "PUPITRE_HTTP_PORT": str(free_port()),
            "PUPITRE_TLS": f"{tmp_path / 'site.crt'} {tmp_path / 'site.key'}",
            "PUPITRE_GATEWAY": f"127.0.0.1:{rig.port}",
            "PUPITRE_PORTAL": f"127.0.0.1:{upstream.sockets[0].getsockname()[1]}",
        }
        log = tmp_path / "caddy.log"
        with log.open("wb") as output:
            caddy = subprocess.Popen(  # noqa: ASYNC220  # it returns at once
                [CADDY, "run", "--config", CADDYFILE, "--adapter", "caddyfile"],
                env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            await listening(port, caddy, log)
            yield Site(rig, port, trust)
        finally:
            caddy.terminate()
            await asyncio.to_thread(caddy.wait, 20)
            upstream.close()
            await upstream.wait_closed()
        assert not [line for line in log.read_text().splitlines() if '"level":"error"' in line and "panic" in line]


async def test_a_console_and_pages_pass_through_caddy(site: Site) -> None:
    origin = f"https://localhost:{site.port}"
    async with httpx2.AsyncClient(base_url=origin, verify=site.trust, trust_env=False) as browser:
        assert (await browser.get("/")).content == b"portal"
        for path in OPS:
            assert (await browser.get(path)).status_code == 404, path
    viewer = websockets.connect(
        f"wss://localhost:{site.port}/gateway/v1/console/d1",
        ssl=site.trust, origin=websockets.Origin(origin), compression=None, proxy=None,
        subprotocols=[websockets.Subprotocol("binary"), websockets.Subprotocol(site.rig.sign(site.rig.ticket()))],
        additional_headers={"Cookie": f"pupitre_session={SESSION}"},
    )  # fmt: skip
    async with viewer as console:
        assert console.subprotocol == "binary"
        assert await console.recv() == GREETING
        sent = bytes(range(256)) * 4000
        await console.send(sent)
        got = b""
        while len(got) < len(sent):
            part = await console.recv()
            assert isinstance(part, bytes)
            got += part
        assert got == sent


async def test_caddy_passes_refusals_on(site: Site) -> None:
    viewer = site.rig.connect(
        site.rig.sign(site.rig.ticket()), origin="https://evil.test", url=f"wss://localhost:{site.port}", tls=site.trust
    )
    with pytest.raises(websockets.InvalidStatus) as refusal:
        async with viewer:
            pass
    assert refusal.value.response.status_code == 403
    assert site.rig.guests.opened == []
