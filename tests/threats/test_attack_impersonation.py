"""Threat 12, a host's certificate in wrong hands: what it is good for, by the real broker and the real cluster."""

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import Callable
from pathlib import Path

import nats.errors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from nats.aio.client import Client

from pupitre.config import Settings
from pupitre.domain.console_link import MAX_LINE
from pupitre.domain.desktop import DesktopState
from pupitre.pki import authority, issuing
from pupitre.wire.broker import write_config
from pupitre.wire.messages import Done, Refused
from pupitre.wire.subjects import Subjects, inbox
from tests.rigs.hostile_host import hostile_host
from tests.rigs.local_cluster import local_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.attack]
BAD = "host-2"
DAY = datetime.timedelta(days=1)
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def forged(
    settings: Settings, folder: Path, name: str, *, use: ObjectIdentifier = CLIENT, ends: datetime.timedelta = DAY
) -> ssl.SSLContext:
    """TLS with a certificate of our authority for the host ``name``, as it should not be."""
    issuer, issuer_key = authority.signer(settings)
    key, role, now = (
        ec.generate_private_key(ec.SECP256R1()),
        issuing.host_role(name),
        datetime.datetime.now(datetime.UTC),
    )
    names = [x509.UniformResourceIdentifier(f"pupitre://{role}"), x509.RFC822Name(issuing.nats_user(role))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "host.crt").write_bytes(authority.pem(certificate))
    (folder / "host.key").write_bytes(authority.private_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(settings.pki_dir / "ca/ca.crt")
    context.load_cert_chain(folder / "host.crt", folder / "host.key")
    return context


async def connected(settings: Settings, context: ssl.SSLContext, name: str) -> Client:
    """Raises what the client raises."""
    client = Client()

    async def quiet(_error: Exception) -> None:
        """The caller sees it too."""

    await client.connect(
        settings.nats_url,
        tls=context,
        inbox_prefix=inbox(issuing.host_role(name)).encode(),
        allow_reconnect=False,
        connect_timeout=5,
        error_cb=quiet,
    )
    return client


async def is_refused(settings: Settings, context: ssl.SSLContext, name: str = BAD) -> bool:
    try:
        client = await connected(settings, context, name)
        await client.flush(timeout=5)  # a TLS 1.3 server may refuse after the client believes that it is in
        await client.close()
    except (nats.errors.Error, OSError, TimeoutError):
        return True
    return False


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        (lambda settings, folder: forged(settings, folder, BAD), False),
        (lambda settings, folder: forged(settings, folder, BAD, ends=-DAY), True),
        (lambda settings, folder: forged(settings, folder, BAD, use=SERVER), True),
        (lambda settings, folder: forged(settings, folder, "host-9"), True),
        (lambda settings, folder: forged(settings.model_copy(update={"home": folder / "theirs"}), folder, BAD), True),
    ],
    ids=["as it should be", "expired", "wrong key usage", "of no host that may connect", "of another authority"],
)
async def test_broker_takes_only_a_good_certificate(
    tmp_path: Path, how: Callable[[Settings, Path], ssl.SSLContext], refused: bool
) -> None:
    async with local_cluster(tmp_path / "home", start=()) as here:
        theirs = here.settings.model_copy(update={"home": tmp_path / "forged/theirs"})
        issuing.ensure_authority(theirs)
        context = how(here.settings, tmp_path / "forged")
        context.load_verify_locations(here.settings.pki_dir / "ca/ca.crt")
        assert await is_refused(here.settings, context) is refused


async def test_revoked_host_is_cut_off_at_once(tmp_path: Path) -> None:
    """Whoever is not in the broker's list any more: nats-server reads it anew at SIGHUP."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        async with hostile_host(here.settings, BAD) as host:
            closed = asyncio.Event()

            async def gone() -> None:
                closed.set()

            host.client._disconnected_cb = gone
            port = int(here.settings.nats_url.rsplit(":", 1)[1])
            write_config(here.settings, port=port, hosts=("host-1",))
            here.broker.reload()
            async with asyncio.timeout(10):
                await closed.wait()
            assert await is_refused(here.settings, forged(here.settings, tmp_path / "forged", BAD))
            await here.running()


async def test_foreign_names_and_guests_are_out_of_reach(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        running = await here.running()
        before = await here.status.desktop(running.desktop or "")
        await (await here.add_host(BAD)).crash()
        async with hostile_host(here.settings, BAD, memory_mib=16) as host:
            subjects = Subjects(here.settings.cluster)
            for subject in (subjects.reports("host-1"), subjects.commands, subjects.orders("host-1")):
                with pytest.raises((nats.errors.Error, TimeoutError)):
                    await host.client.request(subject, b"{}", timeout=0.3)
            assert isinstance(await host.say(host.report(host="host-1")), Refused)
            for state in ("gone", "failed", "running"):
                foreign = {"desktop": running.desktop, "boot": 9, "state": state, "reason": "no"}
                for full in (False, True):
                    assert isinstance(await host.say(host.report(full=full, desktops=[foreign])), Done)
            assert await here.status.desktop(running.desktop or "") == before
            assert before is not None
            assert (before.state, before.host) == (DesktopState.RUNNING, "host-1")


async def test_a_hosts_certificate_opens_no_console_elsewhere(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        one = await here.add_host("host-1")
        role = issuing.host_role(BAD)
        context = issuing.client_context(issuing.ensure_certificate(here.settings, role), role)
        context.check_hostname = False
        reader, writer = await asyncio.open_connection("127.0.0.1", one.console.port, ssl=context)
        writer.write(b'{"ticket":"x"}\n')
        with contextlib.suppress(OSError):
            async with asyncio.timeout(10):
                assert await reader.read(MAX_LINE) == b""
        writer.close()
