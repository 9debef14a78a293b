"""Placement: never over what a host has, never onto one that is not ready, and a reason for each that was passed by."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.host import HostState
from pupitre.domain.placement import OVERLAY_RESERVE_MIB, Candidate, Need, NoPlace, choose

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
    disk_free_mib=st.integers(0, 2 * OVERLAY_RESERVE_MIB),
    used_memory_mib=amounts,
    used_vcpus=st.integers(0, 32),
)
clusters = st.lists(candidates, max_size=6, unique_by=lambda host: host.name)


def fits(need: Need, host: Candidate) -> bool:
    return (
        host.state is HostState.READY
        and host.edition == need.edition
        and need.image in host.images
        and host.used_memory_mib + need.memory_mib <= host.memory_mib
        and host.used_vcpus + need.vcpus <= host.vcpus
        and host.disk_free_mib >= OVERLAY_RESERVE_MIB
    )


@given(needs, clusters)
def test_a_host_where_everything_fits_or_one_reason_for_each(need: Need, hosts: list[Candidate]) -> None:
    choice = choose(need, hosts)
    if isinstance(choice, NoPlace):
        assert not any(fits(need, host) for host in hosts)
        assert [name for name, _ in choice.reasons] == [host.name for host in hosts]
        assert all(reason for _, reason in choice.reasons)
        assert str(choice).endswith(".")
    else:
        assert fits(need, next(host for host in hosts if host.name == choice))


@given(st.lists(needs, max_size=12), clusters)
def test_one_after_the_other_they_never_use_more_than_there_is(wanted: list[Need], hosts: list[Candidate]) -> None:
    there = {host.name: host for host in hosts}
    taken: dict[str, int] = {}
    for need in wanted:
        choice = choose(need, list(there.values()))
        if isinstance(choice, str):
            host = there[choice]
            taken[choice] = taken.get(choice, 0) + need.memory_mib
            there[choice] = replace(
                host,
                used_memory_mib=host.used_memory_mib + need.memory_mib,
                used_vcpus=host.used_vcpus + need.vcpus,
            )
    for name in taken:
        assert there[name].used_memory_mib <= there[name].memory_mib
        assert there[name].used_vcpus <= there[name].vcpus


@given(needs, clusters)
def test_the_order_of_the_hosts_does_not_matter(need: Need, hosts: list[Candidate]) -> None:
    forwards, backwards = choose(need, hosts), choose(need, hosts[::-1])
    assert isinstance(forwards, str) == isinstance(backwards, str)
    if isinstance(forwards, str):
        assert forwards == backwards


def test_the_host_with_the_largest_share_left_is_taken() -> None:
    plenty = {"state": HostState.READY, "edition": False, "images": frozenset("a"), "vcpus": 8, "disk_free_mib": 9999}
    small = Candidate("small", memory_mib=2000, **plenty)  # type: ignore[arg-type]
    large = Candidate("large", memory_mib=8000, used_memory_mib=6000, **plenty)  # type: ignore[arg-type]
    assert choose(Need("a", 500, 1), [large, small]) == "small"


def test_without_hosts_it_says_what_to_do() -> None:
    assert "An administrator can add one" in str(choose(Need("a", 1, 1), []))
