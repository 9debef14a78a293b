"""Origins in settings: written as browsers send them, or refused with what to write."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre import config
from pupitre.config import Settings
from pupitre.domain.origin import ServedHosts, parse_origin
from pupitre.errors import SetupError

NORMAL = {
    "https://lab.example.org": "https://lab.example.org",
    "HTTPS://Lab.Example.ORG:443/": "https://lab.example.org",
    "http://lab.example.org:80": "http://lab.example.org",
    "https://lab.example.org:80": "https://lab.example.org:80",
    "https://lab.example.org:08443": "https://lab.example.org:8443",
    "https://lab.example.org.": "https://lab.example.org",
    "https://lab.example.org:": "https://lab.example.org",
    " https://lab ": "https://lab",
    "https://[2001:DB8:0::1]:443": "https://[2001:db8::1]",
    "https://[::1]:8443/": "https://[::1]:8443",
    "https://xn--exmple-cua.org": "https://xn--exmple-cua.org",
}
WRONG = {
    "lab.example.org": "begins with its scheme",
    "lab.example.org:8443": "begins with its scheme",
    "//lab.example.org": "begins with",
    "": "begins with its scheme",
    "ftp://lab.example.org": "begins with https:// or http://",
    "https://lab.example.org/pupitre": "write https://lab.example.org",
    "https://lab.example.org/?a": "write https://lab.example.org",
    "https://lab.example.org?": "write https://lab.example.org",
    "https://lab.example.org#x": "write https://lab.example.org",
    "https://user:secret-word@lab.example.org": "no user and no password",
    "https://user:se/secret-word@lab.example.org": "cannot be read as an address",
    "https://lab.example.org:99999": "cannot be read as an address",
    "https://lab.example.org:0": "port 0",
    "https://": "is no host",
    "https://*.example.org": "is no host",
    "https://127.1": "is no host",
    "https://0x7f.0.0.1": "is no host",
    "https://[::1": "cannot be read as an address",
    "https://0.0.0.0": "no browser opens that",
    "https://[::]:8443": "no browser opens that",
    "https://[fe80::1%25eth0]": "names a network card",
    "https://exämple.org": "xn--",
    "https://lab example.org": "ASCII",
    "https://lab.example.org\n": None,
    "https://lab\t.example.org": "ASCII",
    "null": "begins with its scheme",
}


@pytest.mark.parametrize(("text", "origin"), NORMAL.items())
def test_origin_is_written_as_browsers_send_it(monkeypatch: pytest.MonkeyPatch, text: str, origin: str) -> None:
    monkeypatch.setenv("PUPITRE_PUBLIC_ORIGIN", text)
    monkeypatch.setenv("PUPITRE_EXTRA_ORIGINS", f"{text}, https://other.example")
    settings = config.load()
    assert settings.origin == origin
    assert settings.served.origins == (origin, "https://other.example")


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_wrong_origin_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, text: str, says: str | None) -> None:
    for setting in ("PUPITRE_PUBLIC_ORIGIN", "PUPITRE_EXTRA_ORIGINS"):
        monkeypatch.setenv(setting, text)
        if says is None or (setting.endswith("ORIGINS") and not text):
            config.load()
        else:
            with pytest.raises(SetupError) as refusal:
                config.load()
            assert says in str(refusal.value)
            assert f"Setting {setting.removeprefix('PUPITRE_').lower()}" in str(refusal.value)
            assert "secret-word" not in str(refusal.value)
        monkeypatch.delenv(setting)


@given(st.text(max_size=60) | st.from_regex(r"https?://[a-zA-Z0-9.:\[\]%@/_-]{0,40}", fullmatch=True))
def test_accepted_origin_is_one_that_stays_as_it_is(text: str) -> None:
    try:
        origin = parse_origin(text)
    except ValueError:
        return
    assert parse_origin(origin) == origin
    assert re.fullmatch(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]*)?", origin)


@pytest.mark.parametrize(
    ("host", "port", "origin"),
    [
        ("127.0.0.1", "8080", "http://127.0.0.1:8080"),
        ("127.0.0.1", "80", "http://127.0.0.1"),
        ("127.0.0.2", "8080", "http://127.0.0.2:8080"),
        ("::1", "8080", "http://[::1]:8080"),
        ("[::1]", "8080", "http://[::1]:8080"),
        ("0:0::1", "80", "http://[::1]"),
        ("LocalHost", "8080", "http://localhost:8080"),
    ],
)
def test_listening_address_makes_its_origin(monkeypatch: pytest.MonkeyPatch, host: str, port: str, origin: str) -> None:
    monkeypatch.setenv("PUPITRE_PORTAL_HOST", host)
    monkeypatch.setenv("PUPITRE_PORTAL_PORT", port)
    assert config.load().origin == origin


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "fe80::1%eth0"])  # noqa: S104
def test_every_address_needs_a_public_origin(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("PUPITRE_PORTAL_HOST", host)
    monkeypatch.setenv("PUPITRE_BEHIND_PROXY", "true")
    with pytest.raises(SetupError, match=r"set public_origin, as https://lab.example.org"):
        config.load()
    monkeypatch.setenv("PUPITRE_PUBLIC_ORIGIN", "https://lab.example.org")
    assert config.load().portal_host == host.strip("[]")


def test_http_origin_beside_a_certificate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUPITRE_TLS_CERT", "/site.crt")
    monkeypatch.setenv("PUPITRE_TLS_KEY", "/site.key")
    monkeypatch.setenv("PUPITRE_PUBLIC_ORIGIN", "http://lab.example.org")
    with pytest.raises(SetupError, match="write https://"):
        config.load()


def test_each_origin_is_known_by_the_host_it_sends() -> None:
    served = ServedHosts(["https://lab.example.org", "http://127.0.0.1:8080", "https://b.example:8443"])
    for host in ("lab.example.org", "LAB.example.org:443", "unknown", ""):
        assert served.origin_of(host) == "https://lab.example.org"
    assert served.origin_of("127.0.0.1:8080") == "http://127.0.0.1:8080"
    assert served.origin_of("b.example:8443") == "https://b.example:8443"
    assert served.refusal(["10.0.0.7:8080"], "10.0.0.7") is None
    assert served.refusal(["10.0.0.8:8080"], "10.0.0.7") is not None


def test_loopback_serves_without_tls_and_others_do_not() -> None:
    assert Settings(portal_host="127.0.0.9").origin == "http://127.0.0.9:8080"
    with pytest.raises(ValueError, match="beyond loopback"):
        Settings(portal_host="10.0.0.7")
