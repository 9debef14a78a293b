"""Passes on to the hosts which sign-ins have ended. It writes nothing down: the endpoint asks until all have heard."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from pupitre.domain.host import Host, HostState
from pupitre.errors import LinkDown
from pupitre.wire.link import Link
from pupitre.wire.messages import Done, EndSignIns
from pupitre.wire.subjects import Subjects

ANSWER_LIMIT = 1.5
"""Seconds for one host."""


@dataclass(frozen=True, slots=True)
class Endings:
    link: Link
    subjects: Subjects

    async def tell(self, hosts: Iterable[Host], bearers: tuple[str, ...], epoch: int) -> None:
        """Return when every host that may have screens open has closed those. Raises `LinkDown` when one did not."""
        names = [host.name for host in hosts if host.state is not HostState.SHUT_DOWN]
        order = EndSignIns(bearers=bearers, epoch=epoch)
        answers = await asyncio.gather(
            *(self.link.request(self.subjects.orders(name), order, Done, timeout=ANSWER_LIMIT) for name in names),
            return_exceptions=True,
        )
        silent = {name: answer for name, answer in zip(names, answers, strict=True) if isinstance(answer, Exception)}
        if silent:
            raise LinkDown("These hosts do not know yet which sign-ins have ended: " + ", ".join(sorted(silent)) + ".")
