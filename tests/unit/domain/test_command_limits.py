"""Interval and quota, against a model in which nothing is ever read late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pupitre.domain.command_limits import DesktopQuota, Start, check_interval, check_quota, desktops_counted
from pupitre.errors import LimitReached, TooEarly

LIMIT = 2


@given(st.integers(0, 10**6), st.integers(0, 10**4), st.integers(-(10**5), 10**6))
def test_interval_refuses_only_while_it_lasts(last: int, interval: int, passed: int) -> None:
    if 0 <= passed < interval:
        with pytest.raises(TooEarly) as raised:
            check_interval(last, interval, last + passed)
        assert raised.value.retry_after == pytest.approx((interval - passed) / 1000)
    else:
        check_interval(last, interval, last + passed)


def test_quota_of_none_names_the_remedy() -> None:
    with pytest.raises(LimitReached, match="Ask your administrator"):
        check_quota(DesktopQuota(0), [])


class Portals(RuleBasedStateMachine):
    """Portals that read a quota at one moment and use it at any later one, while starts and desktops come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self.starts: dict[str, Start] = {}
        self.rows: set[str] = set()
        self.quotas: list[DesktopQuota] = []

    @property
    def present(self) -> set[str]:
        """Desktops that there are, or will be."""
        return self.rows | {one.desktop for one in self.starts.values() if one.is_under_way}

    @rule()
    def read_quota(self) -> None:
        self.quotas.append(DesktopQuota(LIMIT, frozenset(self.rows), self.version))

    @rule(later=st.data())
    def read_quota_torn(self, later: st.DataObject) -> None:
        """A start succeeds between the two reads."""
        version = self.version
        if under_way := sorted(self.pending):
            self.succeed_one(later.draw(st.sampled_from(under_way)))
        self.quotas.append(DesktopQuota(LIMIT, frozenset(self.rows), version))

    @property
    def pending(self) -> list[str]:
        return [one.desktop for one in self.starts.values() if one.is_under_way]

    @precondition(lambda self: self.quotas)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        quota = data.draw(st.sampled_from(self.quotas))
        try:
            check_quota(quota, desktops_counted(quota, self.starts.values()))
        except LimitReached:
            return
        self.version += 1
        desktop = f"d{self.version}"
        self.starts[desktop] = Start(desktop, self.version, is_under_way=True)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def has_row(self, data: st.DataObject) -> None:
        self.rows.add(data.draw(st.sampled_from(self.pending)))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        self.succeed_one(data.draw(st.sampled_from(self.pending)))

    def succeed_one(self, desktop: str) -> None:
        self.rows.add(desktop)  # the status first, then the outcome
        self.version += 1
        self.starts[desktop] = Start(desktop, self.version, is_under_way=False)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        desktop = data.draw(st.sampled_from(self.pending))
        self.version += 1
        self.rows.discard(desktop)
        del self.starts[desktop]

    @precondition(lambda self: self.rows - set(self.pending))
    @rule(data=st.data())
    def end_desktop(self, data: st.DataObject) -> None:
        self.rows.discard(data.draw(st.sampled_from(sorted(self.rows - set(self.pending)))))

    @invariant()
    def never_more_than_the_limit(self) -> None:
        assert len(self.present) <= LIMIT

    @invariant()
    def a_fresh_quota_counts_what_is_there(self) -> None:
        quota = DesktopQuota(LIMIT, frozenset(self.rows), self.version)
        assert desktops_counted(quota, self.starts.values()) == self.present


TestPortals = Portals.TestCase
