"""Lists in pieces: ``limit`` items after the one whose key is ``after``."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from pupitre.portal.schemas import Page

T = TypeVar("T")
S = TypeVar("S")

Limit = Annotated[int, Query(ge=1, le=200, description="Most items in one answer.")]
After = Annotated[str | None, Query(max_length=128, description="`next` of the answer before.")]


def page(
    items: Sequence[S],
    shape: Callable[[S], T],
    key: Callable[[S], str],
    limit: int,
    after: str | None,
    *,
    descending: bool = False,
) -> Page[T]:
    """One page of ``items``, which are in the order of their keys."""
    if after is not None:
        items = [item for item in items if (key(item) < after if descending else key(item) > after)]
    more = len(items) > limit
    return Page(items=[shape(item) for item in items[:limit]], next=key(items[limit - 1]) if more else None)
