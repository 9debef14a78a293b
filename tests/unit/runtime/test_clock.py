"""A clock that does not jump with the machine's: it is what time-outs go by."""

from pupitre.runtime.clock import SteadyClock
from pupitre.timings import CLOCK_BELIEVED, CLOCK_JUMP_MS

HOUR = 3_600_000


class Machine:
    """Both clocks of a machine, set by hand. ``wrong`` is by how much the wall clock is (ms)."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.wrong = 0

    def wall(self) -> int:
        return int(self.seconds * 1000) + 1_000_000 + self.wrong

    def true(self) -> int:
        return int(self.seconds * 1000) + 1_000_000

    def steady(self) -> SteadyClock:
        return SteadyClock(self.wall, lambda: self.seconds)


def test_a_jump_there_and_back_is_not_seen() -> None:
    machine = Machine()
    clock = machine.steady()
    for wrong in (HOUR, -HOUR, 0):
        machine.wrong = wrong
        for _ in range(20):
            machine.seconds += 1
            assert clock.now() == machine.true()


def test_who_stays_elsewhere_is_believed() -> None:
    machine = Machine()
    clock = machine.steady()
    machine.wrong = HOUR
    assert clock.now() == machine.true()
    machine.seconds += CLOCK_BELIEVED - 1
    assert clock.now() == machine.true()
    machine.seconds += 1
    assert clock.now() == machine.wall()


def test_a_clock_that_drifts_is_followed() -> None:
    machine = Machine()
    clock = machine.steady()
    for _ in range(5):
        machine.wrong += CLOCK_JUMP_MS
        machine.seconds += 1
        assert clock.now() == machine.wall()
