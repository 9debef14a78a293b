"""Settings of proxy and origin that do not fit together: found, told with the remedy, mended by it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pupitre.config import Settings
from pupitre.doctor import examine
from pupitre.net.exposure import mismatches

LAB = "https://lab.example.org"
GOOD: tuple[dict[str, object], ...] = (
    {},
    {"portal_port": 80},
    {"public_origin": "http://localhost:8080"},
    {"public_origin": LAB, "behind_proxy": True},
    {"public_origin": LAB, "behind_proxy": True, "portal_host": "::", "trusted_proxies": "10.0.0.5"},
    {"public_origin": LAB, "portal_host": "10.0.0.7", "portal_port": 443, "tls_cert": "/c", "tls_key": "/k"},
)
BAD: tuple[tuple[dict[str, object], str, dict[str, object]], ...] = (
    ({"public_origin": LAB}, "no proxy and no certificate", {"behind_proxy": True}),
    ({"behind_proxy": True}, "browsers have to open http://127.0.0.1:8080", {"public_origin": LAB}),
    (
        {"behind_proxy": True, "public_origin": LAB, "portal_host": "10.0.0.7"},
        "proxy on another machine is not trusted",
        {"trusted_proxies": "10.0.0.5"},
    ),
    ({"public_origin": "http://127.0.0.1:9000"}, "portal_port is 8080", {"portal_port": 9000}),
    ({"public_origin": "http://lab.example.org:8080"}, "for this machine alone", {"public_origin": None}),
    ({"public_origin": "http://lab.example.org", "behind_proxy": True}, "Passwords travel", {"public_origin": LAB}),
)


@pytest.mark.parametrize("options", GOOD)
def test_settings_that_fit_are_not_warned_of(options: dict[str, object]) -> None:
    assert mismatches(Settings.model_validate(options)) == []


@pytest.mark.parametrize(("options", "says", "remedy"), BAD)
def test_mismatch_is_told_and_its_remedy_helps(
    options: dict[str, object], says: str, remedy: dict[str, object]
) -> None:
    settings = Settings.model_validate(options)
    assert [mismatch for mismatch in mismatches(settings) if says in mismatch.sentence]
    assert mismatches(Settings.model_validate(options | remedy)) == []


def test_doctor_tells_of_an_address_that_does_not_fit(tmp_path: Path) -> None:
    settings = Settings.model_validate({"home": tmp_path, "public_origin": LAB})
    (told, other) = [finding for finding in examine(settings) if finding.check == "address"]
    assert not told.well
    assert told.minor
    assert "no proxy and no certificate" in told.found
    assert "behind_proxy = true" in told.remedy
    assert "for this machine alone" in other.found


def test_status_tells_of_a_proxy_that_is_not_set(tmp_path: Path) -> None:
    environment = {"PUPITRE_HOME": str(tmp_path), "PUPITRE_PUBLIC_ORIGIN": LAB, "PATH": "/usr/bin:/bin"}
    said = [
        subprocess.run(
            [sys.executable, "-m", "pupitre", "status", *options],
            env=environment, capture_output=True, text=True, check=False,
        ).stdout
        for options in ((), ("--json",))
    ]  # fmt: skip
    assert "behind_proxy = true" in said[0]
    assert any("behind_proxy = true" in warning for warning in json.loads(said[1])["warnings"])
