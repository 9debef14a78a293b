"""A message of which a part cannot be used, without that part.

Only what is wrong is left out, and the message says so: the receiver takes the rest, and tells people why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from pupitre.domain.report import LeftOut

_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
MOST_REASON = 200
"""Characters."""
MOST_FAULTS = 100
"""Items of a list that are found faulty one by one; what comes after them is not looked at."""


@dataclass(frozen=True, slots=True)
class PartKind:
    """A list in a message: the type of its items, and how many of them there may be."""

    item: Any
    most: int


def salvage(data: bytes, kind: str, lists: Mapping[str, PartKind], optional: Mapping[str, Any]) -> bytes | None:
    """The message in ``data`` with the parts that can be used and a field ``left_out``.

    ``lists`` are taken item by item, ``optional`` as a whole or not at all. None where it is no message of ``kind``.
    Raises what msgspec raises.
    """
    fields = _decoder(dict[str, msgspec.Raw]).decode(data)
    if bytes(fields.get("type", b"")) != msgspec.json.encode(kind):
        return None
    left_out: list[LeftOut] = []
    for name, part in lists.items():
        if name in fields and bytes(fields[name]) != b"null":
            fields[name], lost = _usable(name, part, fields[name])
            left_out += lost
    for name, wanted in optional.items():
        if name in fields and (why := _fault(wanted, fields[name])):
            left_out.append(LeftOut(name, 1, 1, why))
            del fields[name]
    fields["left_out"] = msgspec.Raw(msgspec.json.encode(left_out))
    return msgspec.json.encode(fields)


def _usable(name: str, part: PartKind, raw: msgspec.Raw) -> tuple[msgspec.Raw, list[LeftOut]]:
    """The items that can be used, as many as there may be, and what is left out."""
    items = _decoder(list[msgspec.Raw]).decode(raw)
    good: list[msgspec.Raw] = []
    why, faults = "", 0
    for item in items:
        if len(good) == part.most:
            why = why or f"there are more than {part.most}"
            break
        if fault := _fault(part.item, item):
            why = why or fault
            faults += 1
            if faults == MOST_FAULTS:
                break
        else:
            good.append(item)
    lost = [LeftOut(name, len(items), len(items) - len(good), why)] if why else []
    return msgspec.Raw(msgspec.json.encode(good)), lost


def _fault(wanted: Any, raw: msgspec.Raw) -> str:
    """Why ``raw`` is nothing that is wanted; empty where it is."""
    try:
        _decoder(wanted).decode(raw)
    except _FAULTS as error:
        return "".join(sign if sign.isprintable() else "?" for sign in str(error)[:MOST_REASON]) or "it is unreadable"
    return ""


@lru_cache
def _decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)
