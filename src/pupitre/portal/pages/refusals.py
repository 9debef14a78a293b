"""Refusals, shown on the page that asked: with the reason, the wait, and all that was typed."""

from dataclasses import dataclass

from pupitre.errors import PupitreError
from pupitre.portal.http.problems import answer_to


@dataclass(frozen=True, slots=True)
class Refusal:
    """``retry_after``: the seconds after which it may be asked again."""

    reason: str
    status: int
    headers: dict[str, str]

    @property
    def retry_after(self) -> int | None:
        return int(self.headers["Retry-After"]) if "Retry-After" in self.headers else None


def refusal_of(error: PupitreError) -> Refusal:
    status, headers = answer_to(error)
    return Refusal(str(error), status, headers)
