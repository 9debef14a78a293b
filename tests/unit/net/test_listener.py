"""Places at a port: who gives way to whom, decided without a single connection."""

import pytest

from pupitre.net.limits import Limits
from pupitre.net.listener import Crowd, Slot

PROXY, SCHOOL, OTHER = "10.0.0.1", "10.0.0.2", "10.0.0.3"


class Port(Crowd):
    """Notes who was dropped, by number of arrival."""

    def __init__(self, **changes: int) -> None:
        numbers = {"connections": 8, "per_address": 4, "last_descriptor": 100, "waiting": 8, **changes}
        super().__init__(Limits(**numbers, is_proxy=lambda address: address == PROXY))
        self.arrived = 0
        self.dropped: list[int] = []

    def arrive(self, address: str, descriptor: int = 9) -> Slot | None:
        number, self.arrived = self.arrived, self.arrived + 1
        return self.enter(address, descriptor, lambda: self.dropped.append(number))


def busy(port: Port, address: str, count: int) -> None:
    for _ in range(count):
        slot = port.arrive(address)
        assert slot is not None
        slot.settle()


def test_oldest_waiting_of_an_address_gives_way() -> None:
    port = Port()
    assert port.arrive(OTHER)
    for _ in range(5):
        assert port.arrive(SCHOOL)
    assert port.dropped == [1]
    assert port.open == 5


def test_busy_address_turned_away_others_served() -> None:
    port = Port()
    busy(port, SCHOOL, 4)
    assert port.arrive(SCHOOL) is None
    assert port.arrive(OTHER)
    assert port.dropped == []


def test_proxy_may_have_every_place() -> None:
    port = Port()
    busy(port, PROXY, 8)
    assert port.arrive(PROXY) is None
    assert port.open == 8


def test_idle_again_is_newest_of_those_that_wait() -> None:
    port = Port(per_address=8)
    first, second = port.arrive(OTHER), port.arrive(SCHOOL)
    assert first is not None
    assert second is not None
    first.settle()
    first.wait()
    busy(port, OTHER, 6)
    assert port.arrive(OTHER)
    assert port.dropped == [1]


@pytest.mark.parametrize(("descriptor", "dropped"), [(100, []), (101, [0])])
def test_descriptors_kept_back_make_room(descriptor: int, dropped: list[int]) -> None:
    port = Port()
    assert port.arrive(OTHER)
    assert port.arrive(SCHOOL, descriptor)
    assert port.dropped == dropped


def test_no_descriptor_and_nobody_waits_turned_away() -> None:
    port = Port()
    busy(port, OTHER, 2)
    assert port.arrive(SCHOOL, 101) is None


def test_left_twice_counts_once() -> None:
    port = Port()
    slot = port.arrive(OTHER)
    assert slot is not None
    slot.leave()
    slot.leave()
    slot.wait()
    assert (port.open, dict(port.waiting)) == (0, {})


def test_handshakes_limited_apart_from_connections() -> None:
    port = Port(waiting=2, per_address=8)
    busy(port, OTHER, 3)
    for _ in range(3):
        assert port.arrive(SCHOOL)
    assert port.dropped == [3]
    assert port.open == 5
