"""The life of a child: every state and event, and when it is started again, with a clock that we turn."""

import pytest

from pupitre.errors import ForbiddenTransition
from pupitre.timings import CHILD_HEALTHY, CHILD_RESTART
from pupitre.up.processes.lifecycle import CHILD_LIFE, ChildEvent, ChildLifecycle, ChildState

E = ChildEvent


def lived(*events: tuple[ChildEvent, float]) -> ChildLifecycle:
    life = ChildLifecycle()
    for event, now in events:
        life = life.after(event, now)
    return life


@pytest.mark.parametrize("state", ChildState)
@pytest.mark.parametrize("event", ChildEvent)
def test_every_event_is_in_the_table_or_refused(state: ChildState, event: ChildEvent) -> None:
    life = ChildLifecycle(state=state)
    if CHILD_LIFE.allows(state, event):
        assert life.after(event, 1.0).state is CHILD_LIFE.table[state][event]
    else:
        with pytest.raises(ForbiddenTransition):
            life.after(event, 1.0)


def test_every_state_can_be_reached() -> None:
    reached = {CHILD_LIFE.initial} | {after for row in CHILD_LIFE.table.values() for after in row.values()}
    assert reached == set(ChildState)


def test_the_pause_doubles_up_to_its_limit() -> None:
    life, pauses = ChildLifecycle(), []
    for number in range(9):
        life = life.after(E.START, number).after(E.EXIT, number + 0.1)
        pauses.append(life.pause)
    assert pauses[:4] == [
        CHILD_RESTART.first,
        CHILD_RESTART.first * 2,
        CHILD_RESTART.first * 4,
        CHILD_RESTART.first * 8,
    ]
    assert pauses[-1] == CHILD_RESTART.longest
    assert life.restarts == 8


def test_a_minute_of_life_forgives_earlier_failures() -> None:
    life = lived((E.START, 0), (E.EXIT, 1), (E.START, 2), (E.EXIT, 3), (E.START, 4), (E.READY, 5))
    assert life.failures == 2
    assert life.after(E.EXIT, 4 + CHILD_HEALTHY).pause == CHILD_RESTART.first


def test_what_was_never_ready_is_hopeless_after_three_failures() -> None:
    starts = [(E.START, 0.0), (E.EXIT, 1.0)] * 3
    assert lived(*starts).is_hopeless
    assert not lived(*starts[:4]).is_hopeless
    assert not lived((E.START, 0), (E.READY, 1), *[(E.EXIT, 2), (E.START, 3)] * 5).is_hopeless


def test_child_told_to_stop_is_not_restarted() -> None:
    """A child told to stop is down when it ends and not started again."""
    life = lived((E.START, 0), (E.READY, 1), (E.STOP, 2), (E.EXIT, 3))
    assert life.state is ChildState.DOWN
    with pytest.raises(ForbiddenTransition):
        life.after(E.START, 4)


def test_since_is_when_the_state_began() -> None:
    life = lived((E.START, 1), (E.READY, 5), (E.READY, 9))
    assert (life.since, life.started) == (5, 1)
