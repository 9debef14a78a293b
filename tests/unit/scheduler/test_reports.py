"""Whatever a host reports, in whatever order, it changes nothing but its own desktops."""

from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.command import BootDesktop, CommandState, DestroyDesktop
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.domain.report import DesktopReport, HostFinding
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.desktops import lose_desktops
from pupitre.scheduler.reports import apply_report
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop, RegisteredHost
from pupitre.wire.messages import Report

HOSTS = ("host-1", "host-2", "host-3")
DESKTOPS = tuple(f"d{number}" for number in range(6))
UNKNOWN = ("x1", "x2")
NOTE = "0190aaaa-0000-7000-8000-0000000000f1"

placed = st.builds(
    lambda id, host, state, wanted, boot: PlacedDesktop(
        Desktop(id, "u", "plain", host, state, since=1, created=1, boot=boot), wanted, 256, 1
    ),
    st.sampled_from(DESKTOPS),
    st.sampled_from((*HOSTS, None)),
    st.sampled_from(DesktopState),
    st.sampled_from((DesktopState.RUNNING, DesktopState.GONE)),
    st.integers(1, 3),
)
sightings = st.builds(
    DesktopReport,
    st.sampled_from((*DESKTOPS, *UNKNOWN)),
    st.integers(0, 3),
    st.sampled_from(DesktopState),
    st.none() | st.text(max_size=5),
)
reports = st.builds(
    lambda host, full, seen, findings: Report(
        host=host, run="r", number=1, full=full, port=1, desktops=tuple(seen), findings=tuple(findings)
    ),
    st.sampled_from(HOSTS),
    st.booleans(),
    st.lists(sightings, max_size=8),
    st.lists(
        st.builds(
            HostFinding,
            st.just(NOTE),
            st.just(1),
            st.just("overlay_removed"),
            st.text(max_size=255),
            st.text(max_size=99),
        )
    ),
)
orders = st.builds(
    lambda number, desktop, boots: JournaledCommand(
        f"c{number}", "u", BootDesktop(desktop, "plain") if boots else DestroyDesktop(desktop), deadline=9
    ),
    st.integers(0, 5),
    st.sampled_from(DESKTOPS),
    st.booleans(),
)


def transaction_of(desktops: list[PlacedDesktop], entries: list[JournaledCommand]) -> Changes:
    held = Changes()
    held.desktops = {one.seen.id: one for one in desktops}
    held.commands = {one.id: one for one in entries}
    for name in HOSTS:
        mine = [one for one in held.desktops.values() if one.counted_on == name]
        host = Host(name, HostState.READY, "127.0.0.1", 1, False, since=1)
        held.hosts[name] = RegisteredHost(
            host, used_memory_mib=sum(one.memory_mib for one in mine), used_vcpus=sum(one.vcpus for one in mine)
        )
    return held


@given(st.lists(placed, max_size=6), st.lists(orders, max_size=6), st.lists(reports, min_size=1, max_size=4))
def test_a_report_touches_nothing_but_its_hosts_own_desktops(
    desktops: list[PlacedDesktop], entries: list[JournaledCommand], told: list[Report]
) -> None:
    held = transaction_of(desktops, entries)
    for report in told:
        before, waiting, hosts = dict(held.desktops), dict(held.commands), dict(held.hosts)
        findings = apply_report(held, report, now=5)
        own = {id for id, one in before.items() if one.seen.host == report.host}
        assert held.desktops.keys() == before.keys()
        for id in before.keys() - own:
            assert held.desktops[id] == before[id]
        for id, entry in waiting.items():
            assert isinstance(entry.order, BootDesktop | DestroyDesktop)
            if entry.order.desktop not in own:
                assert held.commands[id] == entry
        for name in HOSTS:
            if name != report.host:
                assert held.hosts[name] == hosts[name]
        assert not findings.orphans & {id for id, one in held.desktops.items() if one.counted_on == report.host}
        for name in HOSTS:  # and what is counted is what is there
            there = [one for one in held.desktops.values() if one.counted_on == name]
            assert held.hosts[name].used_memory_mib == sum(one.memory_mib for one in there)


@given(st.lists(placed, max_size=6), st.lists(orders, max_size=6), st.sampled_from(HOSTS))
def test_a_silent_host_loses_nothing_but_its_own_desktops(
    desktops: list[PlacedDesktop], entries: list[JournaledCommand], host: str
) -> None:
    held = transaction_of(desktops, entries)
    before = dict(held.desktops)
    lose_desktops(held, host, now=5)
    for id, one in before.items():
        if one.seen.host != host:
            assert held.desktops[id] == one
    assert not any(entry.outcome is CommandState.SUCCEEDED for entry in held.commands.values())
