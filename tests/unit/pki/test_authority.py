"""The authority: never replaced unasked, rotated step by step; and no process uses what is outside its time."""

import datetime
import itertools
import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import time_machine
from cryptography import x509

from pupitre.config import Settings
from pupitre.domain.certificate import look_again
from pupitre.errors import SetupError
from pupitre.pki import authority, issued_certificates, issuing
from pupitre.pki.authority import Rotation
from pupitre.up.processes.ports import free_port
from tests.unit.pki.test_issuing import shake

YEAR = datetime.timedelta(days=400)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", host_name="h1")


def pupitre(home: Path, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PUPITRE_")},
        "PUPITRE_HOME": str(home),
        **{f"PUPITRE_{key.upper()}": value for key, value in settings.items()},
    }
    return subprocess.run(
        [sys.executable, "-m", "pupitre", *words], env=environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def moved_away(folder: Path) -> None:
    folder.rename(folder.with_name(f"{folder.name}.away"))


@pytest.mark.parametrize("lost", ["ca", "ca/ca.key"])
def test_missing_authority_is_never_replaced_unasked(settings: Settings, lost: str) -> None:
    for role in issuing.roles(settings):
        issuing.ensure_certificate(settings, role)
    (settings.pki_dir / lost).rename(settings.home / "away")
    before = files(settings.pki_dir)
    for refused in (
        lambda: issuing.ensure_authority(settings),
        lambda: issuing.ensure_certificate(settings, "host-h2"),
        lambda: issuing.ensure_certificate(settings, "host-h2", settings.home / "carry"),
        lambda: authority.begin_rotation(settings),
    ):
        with pytest.raises(SetupError, match=r"ring back") as refusal:
            refused()
        assert "new-authority" in str(refusal.value) or "not on this machine" in str(refusal.value)
    assert files(settings.pki_dir) == before
    assert not (settings.home / "carry").exists()


def test_missing_ticket_key_is_never_replaced_unasked(settings: Settings) -> None:
    issuing.ensure_certificate(settings, "gateway")
    (settings.pki_dir / "portal" / "ticket.key").unlink()
    before = files(settings.pki_dir)
    for refused in (issuing.ensure_ticket_key, lambda own: issuing.ensure_certificate(own, "host-h2")):
        with pytest.raises(SetupError, match="pki init --new-ticket-key"):
            refused(settings)
    assert {path: data for path, data in files(settings.pki_dir).items() if path in before} == before


@pytest.mark.parametrize("words", [("pki", "create"), ("pki", "issue", "host-h2"), ("pki", "rotate", "begin")])
def test_commands_name_the_remedy_for_a_lost_authority(settings: Settings, words: tuple[str, ...]) -> None:
    issuing.ensure_certificate(settings, "gateway")
    moved_away(settings.pki_dir / "ca")
    done = pupitre(settings.home, *words)
    assert done.returncode == 2
    assert "ring back the folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (settings.pki_dir / "ca").exists()


def test_new_authority_that_was_asked_for_serves_all_roles(settings: Settings) -> None:
    for role in ("gateway", "host-h1"):
        issuing.ensure_certificate(settings, role)
    moved_away(settings.pki_dir / "ca")
    old = shutil.copytree(settings.pki_dir / "gateway", settings.home / "old")
    assert pupitre(settings.home, "pki", "init").returncode == 2
    assert not (settings.pki_dir / "ca").exists()
    done = pupitre(settings.home, "pki", "init", "--new-authority", "--json")
    assert json.loads(done.stdout) == {"to_carry": []}, done.stderr
    gateway, host = (issuing.directory(settings, role) for role in ("gateway", "host-h1"))
    server = issuing.server_context(host, "host-h1")
    shake(issuing.client_context(gateway, "gateway"), server, issuing.host_dns_name("h1"))
    with pytest.raises(ssl.SSLError):
        shake(issuing.client_context(old, "gateway"), server, issuing.host_dns_name("h1"))


# Rotation


def test_every_step_of_a_rotation_trusts_the_step_before(settings: Settings, tmp_path: Path) -> None:
    def step(name: str, take: Callable[[Settings], None]) -> Path:
        take(settings)
        take(settings)  # each may be repeated
        for role in ("gateway", "host-h1"):
            issuing.ensure_certificate(settings, role)
        return shutil.copytree(settings.pki_dir, tmp_path / name)

    steps = [
        step("before", lambda _: None),
        step("begun", authority.begin_rotation),
        step("switched", authority.switch_rotation),
        step("finished", authority.finish_rotation),
    ]
    for one, next_one in itertools.pairwise(steps):
        for clients, servers in ((one, next_one), (next_one, one), (next_one, next_one)):
            shake(
                issuing.client_context(clients / "gateway", "gateway"),
                issuing.server_context(servers / "host-h1", "host-h1"),
                issuing.host_dns_name("h1"),
            )
    with pytest.raises(ssl.SSLError):  # the old authority is nobody in the end
        shake(
            issuing.client_context(steps[0] / "gateway", "gateway"),
            issuing.server_context(steps[3] / "host-h1", "host-h1"),
            issuing.host_dns_name("h1"),
        )


def test_rotation_stands_where_its_files_say(settings: Settings) -> None:
    issuing.ensure_authority(settings)
    with pytest.raises(SetupError, match="rotate begin"):
        authority.switch_rotation(settings)
    assert authority.rotation(settings) is Rotation.NONE
    authority.begin_rotation(settings)
    assert authority.rotation(settings) is Rotation.BEGUN
    with pytest.raises(SetupError, match="rotate switch"):
        authority.finish_rotation(settings)
    authority.switch_rotation(settings)
    assert authority.rotation(settings) is Rotation.SWITCHED
    with pytest.raises(SetupError, match="rotate finish"):
        authority.begin_rotation(settings)
    authority.finish_rotation(settings)
    assert authority.rotation(settings) is Rotation.NONE


def test_next_step_waits_until_processes_have_read_the_last(settings: Settings) -> None:
    issuing.ensure_certificate(settings, "gateway")
    assert pupitre(settings.home, "pki", "rotate", "begin").returncode == 0
    early = pupitre(settings.home, "pki", "rotate", "switch")
    assert early.returncode == 2
    assert "Run this again in" in early.stderr
    assert authority.rotation(settings) is Rotation.BEGUN
    later = authority.last_step(settings) - 3 * look_again(365 * 86400)
    for key in (settings.pki_dir / "ca").glob("*.key"):
        os.utime(key, (later, later))
    assert pupitre(settings.home, "pki", "rotate", "switch").returncode == 0
    assert authority.rotation(settings) is Rotation.SWITCHED


def test_finish_refused_while_another_machine_has_the_old(settings: Settings, tmp_path: Path) -> None:
    short = {"certificate_days": "0.01"}
    issuing.ensure_certificate(settings, "host-h2", tmp_path / "carried")
    authority.begin_rotation(settings)
    authority.switch_rotation(settings)
    assert issued_certificates.to_carry(settings) == ["host-h2"]
    key = settings.pki_dir / "ca" / "ca.key"
    os.utime(key, (key.stat().st_mtime - 60,) * 2)
    refused = pupitre(settings.home, "pki", "rotate", "finish", **short)
    assert refused.returncode == 2
    assert "host-h2" in refused.stderr
    assert authority.rotation(settings) is Rotation.SWITCHED
    issuing.ensure_certificate(settings, "host-h2", tmp_path / "anew")
    assert issued_certificates.to_carry(settings) == []
    assert pupitre(settings.home, "pki", "rotate", "finish", **short).returncode == 0
    assert authority.rotation(settings) is Rotation.NONE


def test_renewal_elsewhere_keeps_the_addresses_asked_for(settings: Settings, tmp_path: Path) -> None:
    issuing.ensure_certificate(settings, "host-h2", tmp_path / "one", ["desk.lab", "10.0.0.7"])
    anew = issuing.ensure_certificate(settings, "host-h2", tmp_path / "two")
    certificate = issuing.load_certificate(anew / "host-h2.crt")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [issuing.host_dns_name("h2"), "desk.lab"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


# Outside its time


def test_due_certificate_without_authority_serves_to_its_end(settings: Settings) -> None:
    folder = issuing.ensure_certificate(settings, "cluster")
    before = files(folder)
    moved_away(settings.pki_dir / "ca")
    now = datetime.datetime.now(datetime.UTC)
    with time_machine.travel(now + datetime.timedelta(days=300)):
        issuing.renew_if_due(settings, "cluster")
        issuing.client_context(folder, "cluster")
    assert files(folder) == before
    with time_machine.travel(now + datetime.timedelta(days=366)), pytest.raises(SetupError, match="expired on"):
        issuing.renew_if_due(settings, "cluster")


def test_no_certificate_outlives_its_authority(settings: Settings) -> None:
    issuing.ensure_authority(settings)
    with time_machine.travel(datetime.datetime.now(datetime.UTC) + authority.AUTHORITY_LIFE - YEAR / 4):
        certificate = issuing.load_certificate(issuing.ensure_certificate(settings, "cluster") / "cluster.crt")
    assert certificate.not_valid_after_utc <= authority.signer(settings)[0].not_valid_after_utc


@pytest.mark.parametrize("shift", [-YEAR, YEAR], ids=["expired", "not_yet_valid"])
@pytest.mark.parametrize("process", ["cluster", "endpoint", "host", "gateway", "web", "portal"])
def test_process_refuses_a_certificate_outside_its_time(
    settings: Settings, process: str, shift: datetime.timedelta
) -> None:
    with time_machine.travel(datetime.datetime.now(datetime.UTC) + shift):
        for role in issuing.roles(settings):
            issuing.ensure_certificate(settings, role)
    moved_away(settings.pki_dir / "ca")
    ended = pupitre(settings.home, process, host_name="h1", hypervisor="simulated://prompt", portal_port="0")
    assert ended.returncode == 2, ended.stderr
    said = ended.stderr.strip().splitlines()[-1]
    assert "pki issue" in said if shift < datetime.timedelta() else "Set the clock" in said
    assert "Traceback" not in ended.stderr


def test_web_refuses_an_expired_certificate_for_browsers(settings: Settings, tmp_path: Path) -> None:
    for role in issuing.roles(settings):
        issuing.ensure_certificate(settings, role)
    with time_machine.travel(datetime.datetime.now(datetime.UTC) - YEAR):
        other = issuing.ensure_certificate(Settings(home=tmp_path / "other"), "nats")
    ended = pupitre(
        settings.home, "web", host_name="h1", portal_port=str(free_port()), tls_cert=str(other / "nats.crt"),
        tls_key=str(other / "nats.key"),
    )  # fmt: skip
    assert ended.returncode == 2
    assert "tls_cert" in ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("expired", [False, True])
def test_up_without_authority_starts_only_with_good_ones(settings: Settings, *, expired: bool) -> None:
    shift = YEAR if expired else datetime.timedelta()
    with time_machine.travel(datetime.datetime.now(datetime.UTC) - shift):
        for role in issuing.roles(settings):
            issuing.ensure_certificate(settings, role)
    moved_away(settings.pki_dir / "ca")
    before = files(settings.pki_dir)
    environment = {**os.environ, "PUPITRE_HOME": str(settings.home), "PUPITRE_HOST_NAME": "h1"}
    program = "from pupitre import config; from pupitre.up.prepare import ensure_certificates as e; e(config.load())"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert files(settings.pki_dir) == before
    if expired:
        assert "pki issue nats" in ended.stderr
    else:
        assert ended.returncode == 0, ended.stderr
        assert "no certificate is renewed until it is back" in ended.stdout
