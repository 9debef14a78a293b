"""What is wrong with a host reaches its row in the website's database, the metrics, and whoever reads them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pupitre.cluster.host_warnings import HostWarnings
from pupitre.doctor import examine
from pupitre.domain.command import CommandState
from pupitre.domain.host import Host
from pupitre.domain.warning import HostWarning, WarningCode, set_aside_by, warn
from pupitre.wire.messages import Refused
from tests.rigs.hostile_host import hostile_host
from tests.rigs.local_cluster import LocalCluster, local_cluster, until
from tests.rigs.portal_site import open_site


async def host_where_warned(here: LocalCluster, name: str, *codes: str) -> Host:
    """The host's row once it shows exactly these warnings."""
    found = await until(
        here.changed,
        lambda: here.status.host(name),
        lambda host: host is not None and [one.code for one in host.warnings] == sorted(codes),
    )
    assert found is not None
    return found


@pytest.mark.attack
@pytest.mark.anyio
async def test_refused_reports_set_their_host_aside_alone(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await here.add_host("host-1")
        bad = await here.add_host("host-2")
        await bad.crash()
        async with hostile_host(here.settings, "host-2") as hostile:
            answer = await hostile.say(hostile.report(port=2**70))
            assert isinstance(answer, Refused)
            host = await host_where_warned(here, "host-2", "reports_refused")
            assert "port" in host.warnings[0].sentence(host.title)
            assert 'pupitre_host_warning{code="reports_refused",host="host-2"}' in metrics(here)
            doctor = [one.found for one in examine(here.settings) if one.check == "host host-2"]
            assert doctor == [host.warnings[0].sentence("host-2")]
            for _ in range(3):
                running = await here.running()
                assert (await here.status.desktop(running.desktop or "")).host == "host-1"  # type: ignore[union-attr]
            await hostile.say(hostile.report())
            await host_where_warned(here, "host-2")
            assert "host-2" not in metrics(here)


def metrics(here: LocalCluster) -> str:
    from prometheus_client import generate_latest

    return generate_latest(here.ops["cluster"].registry).decode()


@pytest.mark.anyio
async def test_boot_refused_names_why_the_host_is_set_aside(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        only = await here.add_host("host-1")
        await only.crash()
        async with hostile_host(here.settings, "host-1") as hostile:
            await hostile.say(b"nonsense")
            await host_where_warned(here, "host-1", "reports_refused")
            refused = await here.outcome(await here.boot(), CommandState.FAILED)
            assert refused.fault
            assert "host-1: set aside (reports refused)" in refused.fault.reason


def test_each_code_has_a_sentence_with_its_host() -> None:
    for code in WarningCode:
        assert "host-7" in warn(code, 3, "why").sentence("host-7")


def test_a_code_of_a_newer_version_is_shown() -> None:
    assert HostWarning("moon_is_full", 3, "why").sentence("host-7") == "host-7: moon is full 3 why"
    assert set_aside_by((HostWarning("moon_is_full"),)) is None


@given(st.text(max_size=400), st.integers())
def test_a_warning_is_bounded_whatever_it_is_made_of(text: str, number: int) -> None:
    made = warn(WarningCode.REPORTS_REFUSED, number, text)
    assert len(made.text) <= 200
    assert made.text.isprintable()
    assert -(2**31) <= made.number < 2**31


def test_sources_of_warnings_do_not_overwrite_each_other() -> None:
    warnings = HostWarnings(CollectorRegistry())
    ahead, refused = warn(WarningCode.CLOCK_AHEAD, 40), warn(WarningCode.REPORTS_REFUSED)
    assert warnings.put("host-1", "clock", (ahead,))
    assert warnings.put("host-1", "reports", (refused,))
    assert not warnings.put("host-1", "clock", (ahead,))
    assert warnings.of("host-1") == (ahead, refused)
    assert warnings.put("host-1", "clock", ())
    assert warnings.of("host-1") == (refused,)
    warnings.forget("host-1")
    assert warnings.of("host-1") == ()


@pytest.mark.anyio
async def test_pages_and_rest_show_warnings_in_words(tmp_path: Path) -> None:
    ahead = warn(WarningCode.CLOCK_AHEAD, 40)
    said = "The clock of Room 5 is 40 s ahead."
    async with open_site(tmp_path) as site:
        await site.endpoint.host("host-1", label="Room 5", warnings=(ahead,))
        async with site.as_user("admin") as admin:
            [host] = (await admin.get("/api/v1/hosts")).json()["items"]
            [warning] = host["warnings"]
            assert (warning["code"], warning["number"]) == ("clock_ahead", 40)
            assert warning["sentence"].startswith(said)
            for path in ("/admin/hosts", "/admin/hosts/host-1"):
                assert said in (await admin.get(path)).text
