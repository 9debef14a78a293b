"""The next step of a host, decided in memory: from what is wanted, what is seen, and the time."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.command import BootUpHost, CommandState, ConfigureHost, Order, RegisterHost, RetireHost
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostFacts, HostState
from pupitre.domain.report import DesktopReport
from pupitre.scheduler.changes import Changes
from pupitre.scheduler.host_commands import AT_ONCE, READY, decide, withdraw
from pupitre.scheduler.host_life import Limits, Step, record_shutdown, settle
from pupitre.scheduler.reports import apply_report
from pupitre.scheduler.shutdown import hosts_leaving, want_hosts_down
from pupitre.scheduler.state import JournaledCommand, PlacedDesktop
from pupitre.timings import BEFORE_DEADLINE_MS, WAKE_EVERY
from pupitre.wire.messages import Report

LIMITS = Limits(give_up=300_000, answer=16_000)
NOTICE = 60_000
FACTS = HostFacts(4096, 8, 10_000, "simulated://prompt", "none", "1")
RUNNING, GONE = DesktopState.RUNNING, DesktopState.GONE
MAC = "02:50:75:70:00:01"


class Cluster:
    """One changes that is never written."""

    def __init__(self, state: HostState = HostState.READY, *, mac: str | None = None) -> None:
        self.now = 1_000_000
        self.memory = Changes()
        self.memory.put_host(Host("host-1", state, "127.0.0.1", 4433, False, self.now, facts=FACTS, mac=mac))

    @property
    def host(self) -> Host:
        return self.memory.hosts["host-1"].host

    @property
    def wanted(self) -> str:
        return self.memory.hosts["host-1"].wanted

    def ask(self, order: Order, *, within: int = 600_000) -> str:
        name = f"command-{len(self.memory.commands)}"
        entry = JournaledCommand(name, "somebody", order, self.now + within)
        assert isinstance(order, RetireHost | BootUpHost | ConfigureHost | RegisterHost)
        self.memory.add_command(decide(self.memory, entry, order, now=self.now, notice_ms=NOTICE), now=self.now)
        return name

    def outcome(self, command: str) -> CommandState | None:
        return self.memory.commands[command].outcome

    def reason(self, command: str) -> str | None:
        fault = self.memory.commands[command].fault
        return fault.reason if fault else None

    def place(self, desktop: str, state: DesktopState = RUNNING) -> None:
        seen = Desktop(desktop, "somebody", "plain", "host-1", state, self.now, self.now, boot=1)
        self.memory.put_desktop(PlacedDesktop(seen, RUNNING, 256, 1))

    def seen(self, desktop: str) -> Desktop:
        return self.memory.desktops[desktop].seen

    def end(self, desktop: str) -> None:
        placed = self.memory.desktops[desktop]
        self.memory.put_desktop(replace(placed, seen=replace(placed.seen, state=GONE)))

    def move(self, state: HostState) -> None:
        self.memory.put_host(replace(self.host, state=state, since=self.now))

    def step(self, *, later: float = 0, is_leaving: bool = False) -> Step:
        self.now += int(later * 1000)
        return settle(self.memory, "host-1", now=self.now, limits=LIMITS, is_leaving=is_leaving)


def test_the_way_out_in_order() -> None:
    here = Cluster()
    here.place("d1")
    here.place("d2", DesktopState.BOOTING)
    retire = here.ask(RetireHost("host-1", unregister=False))
    assert here.step() == Step(again=60)
    assert here.host.state is HostState.DRAINING
    for desktop in ("d1", "d2"):
        assert here.seen(desktop).until == here.now + NOTICE
        assert here.seen(desktop).reason == "host-1 is shut down for maintenance; save your work."
    assert here.seen("d1").state is RUNNING
    assert here.step(later=59) == Step(again=1)
    step = here.step(later=1)
    assert step.wake == {"d1", "d2"}
    assert {here.seen(desktop).state for desktop in step.wake} == {DesktopState.STOPPING}
    assert here.seen("d1").until is not None, "its guest gets its time"
    here.end("d1")
    assert here.step().wake == {"d2"}
    here.end("d2")
    step = here.step()
    assert (step.power_off, step.at_once) == (True, False)
    assert here.outcome(retire) is None
    record_shutdown(here.memory, "host-1", now=here.now)
    assert here.outcome(retire) is CommandState.SUCCEEDED, "before it can be back"
    assert here.step() == Step()
    assert (here.outcome(retire), here.host.state) == (CommandState.SUCCEEDED, HostState.SHUT_DOWN)


def test_without_desktops_nobody_is_waited_for() -> None:
    here = Cluster()
    here.ask(RetireHost("host-1", unregister=False))
    assert here.step().power_off
    here = Cluster()
    retire = here.ask(RetireHost("host-1", unregister=True))
    assert here.step() == Step(removed=True)
    assert here.memory.hosts == {}
    assert here.outcome(retire) is CommandState.SUCCEEDED


def test_at_once_takes_back_the_time_that_guests_were_given() -> None:
    here = Cluster()
    here.place("d1")
    here.ask(RetireHost("host-1", unregister=False))
    here.step()
    here.step(later=60)
    here.ask(RetireHost("host-1", unregister=False, at_once=True))
    assert here.step().wake == {"d1"}
    assert here.seen("d1").until is None
    assert here.memory.hosts["host-1"].drained_by == AT_ONCE
    here.ask(RetireHost("host-1", unregister=False))
    assert here.memory.hosts["host-1"].drained_by == AT_ONCE, "a milder word does not take it back"


def test_halt_waits_for_no_host_that_was_down_and_is_back() -> None:
    """A host that is started again right after its farewell, before the halting cluster has looked."""
    cluster = Cluster()
    want_hosts_down(cluster.memory)
    assert hosts_leaving(cluster.memory) == ["host-1"]
    record_shutdown(cluster.memory, "host-1", now=cluster.now)
    assert cluster.host.state is HostState.SHUT_DOWN
    assert hosts_leaving(cluster.memory) == []
    cluster.memory.put_host(replace(cluster.host, state=HostState.READY), wanted=READY)  # as its first report does
    assert hosts_leaving(cluster.memory) == []
    want_hosts_down(cluster.memory)
    assert hosts_leaving(cluster.memory) == ["host-1"]


def test_what_its_host_says_on_the_way_takes_no_reason_away() -> None:
    here = Cluster()
    here.place("d1")
    here.ask(RetireHost("host-1", unregister=False, at_once=True))
    here.step()
    for state in (DesktopState.STOPPING, GONE):
        said = Report(host="host-1", run="r", number=1, full=False, port=1, desktops=(DesktopReport("d1", 1, state),))
        apply_report(here.memory, said, now=here.now)
        assert (here.seen("d1").state, here.seen("d1").reason) == (state, "host-1 was shut down for maintenance.")


def test_one_that_went_down_without_a_farewell_is_shut_down() -> None:
    here = Cluster()
    retire = here.ask(RetireHost("host-1", unregister=False))
    assert here.step().power_off
    here.move(HostState.RECONNECTING)
    assert here.step(is_leaving=False).again is not None
    assert here.outcome(retire) is None
    here.step(is_leaving=True)
    assert (here.host.state, here.host.reason) == (HostState.SHUT_DOWN, "It went down without a notice.")
    assert here.outcome(retire) is CommandState.SUCCEEDED


def test_impossible_host_command_fails_and_host_goes_on() -> None:
    """A command that cannot succeed says why and its host goes on."""
    here = Cluster()
    here.place("d1")
    retire = here.ask(RetireHost("host-1", unregister=True), within=100_000)
    here.step()
    step = here.step(later=61)
    assert step.again is not None
    assert step.again <= 100 - 61 - BEFORE_DEADLINE_MS / 1000
    assert here.step(later=38) == Step(again=0)
    assert here.reason(retire) == "host-1 stays as it was: 1 of its desktops have not ended. Try it again, or at once."
    here.step()
    assert (here.wanted, here.host.state) == (READY, HostState.READY)

    retire = here.ask(RetireHost("host-1", unregister=True), within=100_000)
    here.move(HostState.RECONNECTING)
    here.step(later=99)
    assert here.reason(retire) == "host-1 stays as it was: it does not answer. Try it again, or at once."
    assert (here.wanted, here.host.state) == (READY, HostState.RECONNECTING)


def test_what_nobody_waits_for_any_more_is_not_wanted_any_more() -> None:
    here = Cluster()
    here.place("d1")
    retire = here.ask(RetireHost("host-1", unregister=False))
    here.step()
    here.memory.finish(retire, CommandState.CANCELLED)
    withdraw(here.memory, here.memory.commands[retire])
    here.step()
    assert (here.wanted, here.host.state) == (READY, HostState.READY)
    assert (here.seen("d1").until, here.seen("d1").reason) == (None, None)


def test_machine_is_woken_until_command_nearly_times_out() -> None:
    """A machine is woken again and again until its command is about to time out."""
    here = Cluster(HostState.SHUT_DOWN, mac=MAC)
    wake = here.ask(BootUpHost("host-1"), within=60_000)
    for _ in range(5):
        assert here.step() == Step(again=WAKE_EVERY, mac=MAC, describe=True)
        here.now += int(WAKE_EVERY * 1000)
    assert (here.host.state, here.host.reason) == (HostState.JOINING, "it is being woken")
    assert here.step(later=45) == Step()
    assert (here.outcome(wake), here.host.state) == (CommandState.FAILED, HostState.TIMED_OUT)
    assert "has not answered within 60 s" in (here.reason(wake) or "")

    again = here.ask(BootUpHost("host-1"))
    assert here.step().mac == MAC
    here.move(HostState.READY)
    here.step()
    assert here.outcome(again) is CommandState.SUCCEEDED


def test_machine_without_mac_gets_host_timeout() -> None:
    """A machine without a known card gets as long as a host may be silent."""
    here = Cluster(HostState.TIMED_OUT)
    wake = here.ask(BootUpHost("host-1"))
    assert here.step() == Step(again=WAKE_EVERY, describe=True)
    assert here.outcome(wake) is None
    here.step(later=16)
    assert "give its MAC address" in (here.reason(wake) or "")


def test_a_silent_host_is_given_up_after_a_while_and_not_before() -> None:
    here = Cluster(HostState.RECONNECTING)
    assert here.step(later=299) == Step(again=1)
    assert here.step(later=1) == Step()
    assert here.host.state is HostState.TIMED_OUT
    assert here.step(later=9999) == Step()


def test_unregistering_silent_host_ends_its_desktops() -> None:
    """Unregistering a silent host at once ends its desktops with the reason."""
    here = Cluster(HostState.TIMED_OUT)
    here.place("d1", DesktopState.LOST)
    here.place("d2", DesktopState.LOST)
    here.memory.put_desktop(replace(here.memory.desktops["d2"], wanted=GONE))
    retire = here.ask(RetireHost("host-1", unregister=True, at_once=True))
    assert here.step() == Step(removed=True)
    assert here.outcome(retire) is CommandState.SUCCEEDED
    assert (here.seen("d1").state, here.seen("d1").host) == (DesktopState.FAILED, None)
    assert here.seen("d1").reason == "host-1 left the cluster with it."
    assert here.seen("d2").state is GONE


@pytest.mark.parametrize("state", [HostState.RECONNECTING, HostState.TIMED_OUT, HostState.JOINING])
def test_no_orderly_shutdown_of_silent_host(state: HostState) -> None:
    """Nothing orderly is begun with a host that does not answer."""
    here = Cluster(state)
    for unregister, at_once in ((False, False), (False, True), (True, False)):
        refused = here.ask(RetireHost("host-1", unregister=unregister, at_once=at_once))
        assert here.outcome(refused) is CommandState.FAILED
        assert here.wanted == READY


orders = st.one_of(
    st.builds(RetireHost, host=st.just("host-1"), unregister=st.booleans(), at_once=st.booleans()),
    st.builds(BootUpHost, host=st.just("host-1")),
    st.builds(ConfigureHost, host=st.just("host-1"), edition=st.booleans()),
)
happenings = st.one_of(orders, st.sampled_from(HostState), st.sampled_from(["a desktop ends", "time passes"]))


@given(st.lists(happenings, max_size=12), st.booleans())
def test_every_command_about_a_host_has_its_outcome_in_the_end(happened: list[object], is_leaving: bool) -> None:
    """Whatever happens: the later command holds, all have an outcome by their deadline, and nobody is stopped else."""
    here = Cluster(mac=MAC)
    here.place("d1")
    for happening in happened:
        if "host-1" not in here.memory.hosts:
            return
        if isinstance(happening, RetireHost | BootUpHost | ConfigureHost):
            here.ask(happening, within=60_000)
        elif isinstance(happening, HostState):
            here.move(happening)
        elif happening == "a desktop ends":
            here.end("d1")
        here.step(later=5 if happening == "time passes" else 0, is_leaving=is_leaving)
        open_still = {entry.order.kind for entry in here.memory.commands.values() if entry.outcome is None}
        assert len(open_still) <= 1, "two commands that want different things"
        if here.seen("d1").state is DesktopState.STOPPING:
            assert any(isinstance(entry.order, RetireHost) for entry in here.memory.commands.values())
    for _ in range(4):
        here.step(later=60, is_leaving=is_leaving)
    assert all(entry.outcome for entry in here.memory.commands.values())
