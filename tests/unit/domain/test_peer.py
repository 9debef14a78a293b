"""Forwarded addresses: whose count, and which of several is the client's."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre import config
from pupitre.domain.peer import LOOPBACK, TrustedProxies, parse_network
from pupitre.environment import default_home
from pupitre.errors import SetupError

PROXIES = TrustedProxies([*LOOPBACK, ip_network("10.0.0.0/24"), ip_network("fd00::/64")])
LINES: tuple[tuple[str, list[str], str], ...] = (
    ("10.0.0.5", [], "10.0.0.5"),
    ("10.0.0.5", ["192.0.2.1"], "192.0.2.1"),
    ("192.0.2.9", ["192.0.2.1"], "192.0.2.9"),  # a stranger's word
    ("10.0.0.5", ["6.6.6.6, 192.0.2.1"], "192.0.2.1"),  # what the client itself wrote
    ("10.0.0.5", ["6.6.6.6", "192.0.2.1"], "192.0.2.1"),  # repeated
    ("10.0.0.5", ["192.0.2.1, 10.0.0.7"], "192.0.2.1"),  # two proxies
    ("10.0.0.5", ["192.0.2.1", "10.0.0.7", "10.0.0.8"], "192.0.2.1"),
    ("10.0.0.5", ["10.0.0.7"], "10.0.0.7"),  # a client on a proxy's machine
    ("10.0.0.5", ["6.6.6.6, unknown"], "10.0.0.5"),
    ("10.0.0.5", ["6.6.6.6, , 10.0.0.7,"], "6.6.6.6"),
    ("10.0.0.5", ["6.6.6.6, _hidden, 10.0.0.7"], "10.0.0.7"),
    ("10.0.0.5", ["", "  "], "10.0.0.5"),
    ("10.0.0.5", ["192.0.2.1:4711"], "192.0.2.1"),
    ("10.0.0.5", ["192.0.2.1:http"], "10.0.0.5"),
    ("10.0.0.5", ["192.0.2.1:99999"], "10.0.0.5"),
    ("10.0.0.5", ["2001:DB8:0::1"], "2001:db8::1"),
    ("10.0.0.5", ["[2001:db8::1]:4711"], "2001:db8::1"),
    ("10.0.0.5", ["[2001:db8::1"], "10.0.0.5"),
    ("10.0.0.5", ["[2001:db8::1]x"], "10.0.0.5"),
    ("fd00::5", ["fd00::7, fd00:0::8"], "fd00::7"),
    ("fd00::5", ["fe80::1%eth0"], "fe80::1"),
    ("::ffff:10.0.0.5", ["::ffff:192.0.2.1"], "192.0.2.1"),  # a socket of both families
    ("::ffff:192.0.2.9", ["192.0.2.1"], "192.0.2.9"),
    ("10.0.0.5", ["192.0.2.1\x00"], "10.0.0.5"),
    ("10.0.0.5", ["192.0.2.01"], "10.0.0.5"),  # octal for some, decimal for others
    ("10.0.0.5", ["for=192.0.2.1"], "10.0.0.5"),
    ("", ["192.0.2.1"], ""),
)


@pytest.mark.parametrize(("peer", "lines", "client"), LINES)
def test_right_most_untrusted_address_is_the_client(peer: str, lines: list[str], client: str) -> None:
    assert PROXIES.client(peer, lines) == client


@given(
    forged=st.lists(st.text(max_size=40)),
    client=st.ip_addresses().filter(lambda address: not PROXIES.trusts(str(address))),
    hops=st.lists(st.sampled_from(["10.0.0.7", "::1", "fd00::9", "[fd00::9]:80"])),
)
def test_what_a_client_writes_never_changes_its_address(forged: list[str], client: object, hops: list[str]) -> None:
    assert PROXIES.client("127.0.0.1", [*forged, str(client), *hops]) == PROXIES.client(str(client), [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lab.example.org", "is no address and no network"),
        ("10.0.0.5/8", "write 10.0.0.0/8, or 10.0.0.5 for that address alone"),
        ("0.0.0.0/0", "name the proxies alone"),
        ("::/0", "name the proxies alone"),
        ("*", "is no address and no network"),
        ("10.0.0.5:80", "is no address and no network"),
        ("[10.0.0.5", "separate its words by commas"),
    ],
)
def test_wrong_proxy_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    monkeypatch.setenv("PUPITRE_BEHIND_PROXY", "true")
    monkeypatch.setenv("PUPITRE_TRUSTED_PROXIES", text)
    with pytest.raises(SetupError, match="Setting trusted_proxies") as refusal:
        config.load()
    assert says in str(refusal.value)
    if not text.startswith("["):
        with pytest.raises(ValueError, match=r"write|name"):
            parse_network(text)


def test_proxies_are_read_from_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PUPITRE_HOME", str(tmp_path))
    monkeypatch.setenv("PUPITRE_BEHIND_PROXY", "true")
    assert config.load().trusted_proxies == LOOPBACK
    for text in ("10.0.0.5, fd00::/64", '["10.0.0.5", "fd00::/64"]'):
        monkeypatch.setenv("PUPITRE_TRUSTED_PROXIES", text)
        assert config.load().trusted_proxies == (ip_network("10.0.0.5"), ip_network("fd00::/64"))
        assert not config.load().proxies.trusts("127.0.0.1")
    monkeypatch.delenv("PUPITRE_TRUSTED_PROXIES")
    (default_home() / "pupitre.toml").write_text('trusted_proxies = ["10.0.0.5"]\n')
    assert config.load().trusted_proxies == (ip_network("10.0.0.5"),)


def test_proxies_without_behind_proxy_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not config.Settings().proxies.trusts("127.0.0.1")
    monkeypatch.setenv("PUPITRE_TRUSTED_PROXIES", "10.0.0.5")
    with pytest.raises(SetupError, match="set behind_proxy = true"):
        config.load()
