"""Fault 21, and whatever Hypothesis thinks of: starts, stops in the middle of them, crashes, frozen parts.

One cluster of real processes for all examples; each example ends when every command has its outcome and the
history is sound. Hypothesis prints the steps of one that is not, and how to have it again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from signal import SIGCONT
from typing import ClassVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, rule, run_state_machine_as_test

from pupitre.domain.command import Command
from tests.chaos.killable_cluster import KillableCluster, killable_cluster

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

PARTS = st.sampled_from(["cluster", "endpoint", "host-1", "host-2"])


class Lives(RuleBasedStateMachine):
    """A desktop in `running` was asked for, and may be anything by now."""

    portal: ClassVar[BlockingPortal]
    deployment: ClassVar[KillableCluster]
    booted = Bundle("booted")
    destroyed = Bundle("destroyed")

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Command] = []
        self.frozen: set[str] = set()

    async def _boot(self) -> Command:
        return await self.deployment.boot(timeout=60)

    async def _destroy(self, boot: Command) -> Command:
        return await self.deployment.destroy(boot.desktop, user=boot.user, timeout=60)

    async def _restart(self, name: str, wait: bool) -> None:
        part = self.deployment.processes[name]
        await part.kill()
        await part.start(wait=wait)

    @rule(target=booted)
    def boot(self) -> Command:
        command = self.portal.call(self._boot)
        self.given.append(command)
        return command

    @rule(target=booted, count=st.integers(2, 4))
    def boot_many(self, count: int) -> object:
        return multiple(*(self.boot() for _ in range(count)))

    @rule(target=destroyed, boot=consumes(booted))
    def destroy(self, boot: Command) -> Command:
        self.given.append(self.portal.call(self._destroy, boot))
        return boot

    @rule(boot=destroyed)
    def destroy_again(self, boot: Command) -> None:
        self.given.append(self.portal.call(self._destroy, boot))

    @rule(name=PARTS, wait=st.booleans())
    def crash(self, name: str, wait: bool) -> None:
        self.frozen.discard(name)
        self.portal.call(self._restart, name, wait and not self.frozen)

    @rule(name=PARTS)
    def freeze(self, name: str) -> None:
        self.frozen.add(name)
        self.portal.call(self.deployment.freeze, name)

    @rule(name=PARTS)
    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        self.deployment.processes[name].signal(SIGCONT)

    @rule()
    def wait_for_the_first(self) -> None:
        if self.given and not self.frozen:
            self.portal.call(self.deployment.outcome, self.given[0])

    def teardown(self) -> None:
        for name in list(self.frozen):
            self.thaw(name)
        self.portal.call(self.deployment.outcomes, self.given)
        wrong = self.portal.call(self.deployment.settled)
        assert not wrong, [*map(str, wrong), self.deployment.tail()]
        assert not self.deployment.ended()


@contextmanager
def alive(home: Path) -> Iterator[None]:
    with start_blocking_portal() as portal:
        deployments = killable_cluster(
            home, ("host-1", "host-2"), host_timeout=3.0, connection_grace=20, user_in_flight=100
        )
        with portal.wrap_async_context_manager(deployments) as deployment:
            Lives.portal, Lives.deployment = portal, deployment
            yield


def test_whatever_happens_in_whatever_order_the_history_is_sound(tmp_path: Path) -> None:
    with alive(tmp_path):
        run_state_machine_as_test(
            Lives,
            settings=settings(
                max_examples=12,
                stateful_step_count=15,
                deadline=None,
                # Each example is seconds long: what was drawn is shown as it was.
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
                print_blob=True,
            ),
        )
