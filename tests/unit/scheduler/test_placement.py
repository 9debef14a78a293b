"""Placement: never over what a host has, never onto one that is not ready, and a reason for each that was passed by."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.capacity import OVERLAY_RESERVE_MIB
from pupitre.domain.host import HostState
from pupitre.domain.overhead import VIDEO_MIB, guest_overhead_mib, over_books_mib
from pupitre.scheduler.placement import Candidate, Need, NoPlace, choose

IMAGES = ("a", "b")
amounts = st.integers(0, 4096)
needs = st.builds(
    Need, image=st.sampled_from(IMAGES), memory_mib=st.integers(1, 4096), vcpus=st.integers(1, 8), edition=st.booleans()
)
candidates = st.builds(
    Candidate,
    name=st.text("abcdefgh", min_size=1, max_size=3),
    state=st.sampled_from(HostState),
    edition=st.booleans(),
    images=st.frozensets(st.sampled_from(IMAGES)),
    memory_mib=amounts,
    vcpus=st.integers(0, 32),
    disk_free_mib=st.integers(0, 4 * OVERLAY_RESERVE_MIB),
    used_memory_mib=amounts,
    used_vcpus=st.integers(0, 32),
    starting=st.integers(0, 3),
    label=st.sampled_from(("", "Room 7", "Room 8")),
    overhead_mib=st.integers(0, 300),
    over_books_mib=st.integers(0, 300),
)
clusters = st.lists(candidates, max_size=6, unique_by=lambda host: host.name)
roomy = st.builds(replace, candidates, state=st.just(HostState.READY), images=st.just(frozenset(IMAGES)))
"""Hosts with nothing against them but what they have: so that many a choice is made."""


def fits(need: Need, host: Candidate) -> bool:
    return (
        host.state is HostState.READY
        and host.edition == need.edition
        and need.image in host.images
        and host.used_memory_mib + host.over_books_mib + need.memory_mib + host.overhead_mib <= host.memory_mib
        and host.used_vcpus + need.vcpus <= host.vcpus
        and host.disk_free_mib >= OVERLAY_RESERVE_MIB * (host.starting + 1)
    )


def is_true(reason: str, need: Need, host: Candidate) -> bool:
    """Whether the reason holds, and names the number that is short."""
    free_memory = host.memory_mib - host.used_memory_mib - host.over_books_mib - host.overhead_mib
    free_vcpus = host.vcpus - host.used_vcpus
    disk = OVERLAY_RESERVE_MIB * (host.starting + 1)
    return {
        str(host.state).replace("_", " "): host.state is not HostState.READY,
        "for editing images only": host.edition and not need.edition,
        "not for editing images": need.edition and not host.edition,
        f"has no copy of {need.image} yet": need.image not in host.images,
        f"{need.memory_mib - free_memory} MiB of memory short": need.memory_mib > free_memory,
        f"{need.vcpus - free_vcpus} virtual CPUs short": need.vcpus > free_vcpus + 1,
        "1 virtual CPU short": need.vcpus == free_vcpus + 1,
        f"{disk - host.disk_free_mib} MiB of disk short": disk > host.disk_free_mib,
    }.get(reason, False)


@given(needs, clusters)
def test_placement_finds_host_or_true_reason_for_each(need: Need, hosts: list[Candidate]) -> None:
    """A host where everything fits or one true reason for each."""
    choice = choose(need, hosts)
    if isinstance(choice, NoPlace):
        assert not any(fits(need, host) for host in hosts)
        assert [title for title, _ in choice.reasons] == [host.label or host.name for host in hosts]
        for (_, reason), host in zip(choice.reasons, hosts, strict=True):
            assert is_true(reason, need, host), (reason, host)
        assert str(choice).endswith(".")
    else:
        assert fits(need, next(host for host in hosts if host.name == choice))


@given(st.lists(needs, max_size=12), st.lists(roomy, max_size=4, unique_by=lambda host: host.name))
def test_one_after_the_other_they_never_use_more_than_there_is(wanted: list[Need], hosts: list[Candidate]) -> None:
    """Whatever is asked for: memory, virtual CPUs and disk are never given out twice, and editing stays apart."""
    there = {host.name: host for host in hosts}
    given_out: dict[str, list[Need]] = {}
    for need in wanted:
        choice = choose(need, list(there.values()))
        if isinstance(choice, str):
            host = there[choice]
            given_out.setdefault(choice, []).append(need)
            there[choice] = replace(
                host,
                used_memory_mib=host.used_memory_mib + need.memory_mib + host.overhead_mib,
                used_vcpus=host.used_vcpus + need.vcpus,
                starting=host.starting + 1,
            )
    for name, taken in given_out.items():
        host = there[name]
        assert host.used_memory_mib + host.over_books_mib <= host.memory_mib
        assert host.used_vcpus <= host.vcpus
        assert host.starting * OVERLAY_RESERVE_MIB <= host.disk_free_mib
        assert {need.edition for need in taken} == {host.edition}


@given(needs, clusters)
def test_the_order_of_the_hosts_does_not_matter(need: Need, hosts: list[Candidate]) -> None:
    forwards, backwards = choose(need, hosts), choose(need, hosts[::-1])
    if isinstance(forwards, NoPlace):
        assert isinstance(backwards, NoPlace)
        assert sorted(forwards.reasons) == sorted(backwards.reasons)
    else:
        assert forwards == backwards == choose(need, hosts)


def test_the_host_with_the_largest_share_left_is_taken() -> None:
    plenty = {"state": HostState.READY, "edition": False, "images": frozenset("a"), "vcpus": 8, "disk_free_mib": 9999}
    small = Candidate("small", memory_mib=2000, **plenty)  # type: ignore[arg-type]
    large = Candidate("large", memory_mib=8000, used_memory_mib=6000, **plenty)  # type: ignore[arg-type]
    assert choose(Need("a", 500, 1), [large, small]) == "small"


def test_it_says_in_words_what_each_host_lacks() -> None:
    usual = {"edition": False, "images": frozenset("a"), "vcpus": 8, "disk_free_mib": 9999}
    hosts = [
        Candidate("host-1", HostState.SHUT_DOWN, memory_mib=4096, label="Room 7", **usual),  # type: ignore[arg-type]
        Candidate("host-2", HostState.READY, memory_mib=1024, used_memory_mib=1024, **usual),  # type: ignore[arg-type]
        Candidate("host-3", HostState.READY, memory_mib=4096, starting=19, **usual),  # type: ignore[arg-type]
    ]
    assert str(choose(Need("a", 512, 1), hosts)) == (
        "No host has room: Room 7: shut down; host-2: 512 MiB of memory short; host-3: 241 MiB of disk short."
    )


def test_without_hosts_it_says_what_to_do() -> None:
    assert "An administrator can add one" in str(choose(Need("a", 1, 1), []))


@given(st.sampled_from(("tcg", "kvm")), st.sampled_from(sorted(VIDEO_MIB)), st.integers(1, 64))
def test_books_hold_what_measured_guests_really_take(accelerator: str, video: str, count: int) -> None:
    """As many as fit 16 GiB by the books are not more than fit by what one was measured to take."""
    need, measured = 160, 252
    each = need + guest_overhead_mib(accelerator, video)
    assert accelerator == "kvm" or each >= measured
    assert over_books_mib([(need, each)] * count, accelerator) <= count * max(VIDEO_MIB.values())
    surplus = over_books_mib([(need, need + guest_overhead_mib(accelerator, "vga") + 10)] * count, accelerator)
    assert surplus == 10 * count


def test_simulated_guests_take_nothing_beyond_their_own() -> None:
    assert guest_overhead_mib("simulated", "vga") == guest_overhead_mib("test", "vga") == 0
