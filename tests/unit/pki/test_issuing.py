"""Certificates: who is who, who may talk to whom, what is renewed and what stays."""

import datetime
import json
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import time_machine
from cryptography import x509

from pupitre.config import Settings
from pupitre.errors import SetupError
from pupitre.pki import authority, issuing


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, nats_url="tls://10.1.2.3:4222, tls://nats.lab:4222", host_name="h1")


def shake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """A TLS handshake in memory."""
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours, theirs = client.wrap_bio(a, b, server_hostname=name), server.wrap_bio(b, a, server_side=True)
    open_ends = [ours, theirs]
    while open_ends:
        for end in list(open_ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            open_ends.remove(end)
    return ours, theirs


def context(settings: Settings, role: str, *, server: bool) -> ssl.SSLContext:
    folder = issuing.ensure_certificate(settings, role)
    return issuing.server_context(folder, role) if server else issuing.client_context(folder, role)


def test_both_sides_know_each_others_role(settings: Settings) -> None:
    gateway, host = shake(
        context(settings, "gateway", server=False),
        context(settings, "host-h1", server=True),
        issuing.host_dns_name("h1"),
    )
    assert issuing.peer_role(host) == "gateway"
    assert issuing.peer_role(gateway) == "host-h1"
    assert gateway.version() == "TLSv1.3"


def test_a_host_cannot_pass_for_another(settings: Settings) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(
            context(settings, "gateway", server=False),
            context(settings, "host-h1", server=True),
            "h2.host.pupitre.internal",
        )


def test_a_client_certificate_serves_nobody(settings: Settings) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(context(settings, "endpoint", server=False), context(settings, "gateway", server=True), "localhost")


def test_another_authority_is_nobody(settings: Settings, tmp_path: Path) -> None:
    stranger = Settings(home=tmp_path / "elsewhere")
    with pytest.raises(ssl.SSLError):
        shake(
            context(stranger, "gateway", server=False),
            context(settings, "host-h1", server=True),
            issuing.host_dns_name("h1"),
        )


def test_keys_are_for_their_owner_only(settings: Settings) -> None:
    for role in issuing.roles(settings):
        issuing.ensure_certificate(settings, role)
    keys = list(settings.pki_dir.rglob("*.key"))
    assert {path.name for path in keys} >= {"ca.key", "ticket.key", "nats.key", "host-h1.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert not list(settings.pki_dir.rglob("host-h1/ca.key"))


def test_nats_sees_exactly_one_user_and_the_configured_names(settings: Settings) -> None:
    certificate = issuing.load_certificate(issuing.ensure_certificate(settings, "nats") / "nats.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.RFC822Name) == [issuing.nats_user("nats")]
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "nats.lab"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1", "10.1.2.3"]


def test_repeating_changes_nothing_until_it_is_due(settings: Settings) -> None:
    certificate = issuing.ensure_certificate(settings, "gateway") / "gateway.crt"
    first = certificate.read_bytes()
    issuing.ensure_certificate(settings, "gateway")
    assert certificate.read_bytes() == first
    with time_machine.travel(datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=250)):
        issuing.ensure_certificate(settings, "gateway")
    assert certificate.read_bytes() != first


def test_new_names_and_a_new_authority_mean_a_new_certificate(settings: Settings, tmp_path: Path) -> None:
    certificate = issuing.ensure_certificate(settings, "nats") / "nats.crt"
    first = certificate.read_bytes()
    issuing.ensure_certificate(Settings(home=tmp_path, nats_url="tls://other.lab:4222"), "nats")
    second = certificate.read_bytes()
    assert second != first
    authority.create_anew(settings)
    issuing.ensure_certificate(Settings(home=tmp_path, nats_url="tls://other.lab:4222"), "nats")
    assert certificate.read_bytes() != second


def test_without_the_authoritys_key_a_good_certificate_is_enough(settings: Settings, tmp_path: Path) -> None:
    carried = issuing.ensure_certificate(settings, "host-h1", tmp_path / "remote" / "pki" / "host-h1")
    remote = Settings(home=tmp_path / "remote", host_name="h1")
    assert issuing.ensure_certificate(remote, "host-h1") == carried
    assert not (remote.pki_dir / "ca").exists()
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=300)
    with time_machine.travel(later), pytest.raises(SetupError, match="pki issue host-h1"):
        issuing.ensure_certificate(remote, "host-h1")


def test_unknown_roles_and_damaged_files_are_said(settings: Settings) -> None:
    with pytest.raises(SetupError, match="is no role"):
        issuing.ensure_certificate(settings, "../../etc")
    folder = issuing.ensure_certificate(settings, "gateway")
    (folder / "gateway.key").write_text("garbage")
    with pytest.raises(SetupError, match="cannot be used"):
        issuing.client_context(folder, "gateway")


def test_two_processes_at_once_make_one_authority(settings: Settings) -> None:
    program = (
        "from pupitre import config; from pupitre.pki import issuing;"
        "issuing.ensure_certificate(config.load(), 'gateway')"
    )
    environment = {**os.environ, "PUPITRE_HOME": str(settings.home)}
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    folder = issuing.directory(settings, "gateway")
    shake(
        issuing.client_context(folder, "gateway"),
        context(settings, "host-h1", server=True),
        issuing.host_dns_name("h1"),
    )


def test_the_commands_say_what_there_is(settings: Settings) -> None:
    environment = {**os.environ, "PUPITRE_HOME": str(settings.home)}

    def pupitre(*words: str) -> object:
        program = "from pupitre.cli.local.pki import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", program, *words, "--json"], env=environment, capture_output=True, check=True
        )
        return json.loads(done.stdout)

    assert set(pupitre("create")) == {"nats", "endpoint", "cluster", "gateway", "portal", "host-host-1"}  # type: ignore[call-overload]
    pupitre("issue", "host-h2", "--dir", str(settings.home / "carry"))
    assert (settings.home / "carry" / "host-h2.key").exists()
    assert {row["role"] for row in pupitre("show")} == {  # type: ignore[attr-defined]
        "ca", "nats", "endpoint", "cluster", "gateway", "portal", "host-host-1",
    }  # fmt: skip
