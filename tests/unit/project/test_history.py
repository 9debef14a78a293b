"""The history checker: each way in which a history can be wrong is found, and a sound one is not blamed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pupitre.domain.command import CommandKind, CommandState
from pupitre.domain.desktop import DesktopState
from tests.rigs.history import CommandSeen, EntrySeen, Evidence, HostSeen, PlacedSeen, ShownSeen, Sort, violations

D, C = DesktopState, CommandState
BOOT, DESTROY = CommandKind.BOOT_DESKTOP, CommandKind.DESTROY_DESKTOP

SOUND = Evidence(
    commands={
        "boot-a": CommandSeen("boot-a", BOOT, "a", C.SUCCEEDED),
        "boot-b": CommandSeen("boot-b", BOOT, "b", C.SUCCEEDED),
        "end-b": CommandSeen("end-b", DESTROY, "b", C.SUCCEEDED),
        "boot-c": CommandSeen("boot-c", BOOT, "c", C.TIMED_OUT, "TIMED_OUT", late=C.SUCCEEDED),
        "boot-d": CommandSeen("boot-d", BOOT, "d", C.FAILED, "CONNECTION_ERROR"),
        "boot-e": CommandSeen("boot-e", BOOT, "e", C.FAILED, "VM_BOOT_FAILURE"),
    },
    audit=(
        ("boot-a", ""), ("boot-a", "VM_CONNECTION_DATA"), ("boot-b", ""), ("boot-b", "VM_CONNECTION_DATA"),
        ("end-b", ""), ("end-b", "COMMAND_EXECUTED"),
        ("boot-c", ""), ("boot-c", "TIMED_OUT"), ("boot-c", "late succeeded"),
        ("boot-d", ""), ("boot-d", "CONNECTION_ERROR"), ("boot-e", ""), ("boot-e", "VM_BOOT_FAILURE"),
    ),
    journal={
        "boot-a": EntrySeen(C.SUCCEEDED, reported=True),
        "boot-b": EntrySeen(C.SUCCEEDED, reported=True),
        "end-b": EntrySeen(C.SUCCEEDED, reported=True),
        "boot-c": EntrySeen(C.CANCELLED, reported=True),
        "boot-e": EntrySeen(C.FAILED, reported=True),
    },
    placed={
        "a": PlacedSeen("host-1", D.RUNNING, D.RUNNING, memory_mib=256, vcpus=1),
        "b": PlacedSeen("host-2", D.GONE, D.GONE, memory_mib=256, vcpus=1),
        "c": PlacedSeen("host-2", D.GONE, D.GONE, memory_mib=256, vcpus=1),
        "e": PlacedSeen(None, D.FAILED, D.GONE, reason="The guest did not start.", memory_mib=256, vcpus=1),
    },
    shown={"a": ShownSeen("host-1", D.RUNNING), "b": ShownSeen("host-2", D.GONE), "e": ShownSeen(None, D.FAILED)},
    used={"host-1": (256, 1), "host-2": (0, 0)},
    hosts={
        "host-1": HostSeen(("a",), frozenset("a"), {"a": D.RUNNING}, ran=frozenset("a")),
        "host-2": HostSeen(ran=frozenset("b"), records={}),
    },
    answered=frozenset({"boot-a", "boot-b", "end-b", "boot-c", "boot-d", "boot-e"}),
    told={"boot-a": C.SUCCEEDED, "boot-c": C.TIMED_OUT},
)  # fmt: skip


def changed(seen: Evidence, field: str, value: Any) -> Evidence:
    return replace(seen, **{field: value})


def command(id: str, **changes: object) -> Callable[[Evidence], Evidence]:
    return lambda seen: replace(seen, commands={**seen.commands, id: replace(seen.commands[id], **changes)})  # type: ignore[arg-type]


def desktop(id: str, **changes: object) -> Callable[[Evidence], Evidence]:
    return lambda seen: replace(seen, placed={**seen.placed, id: replace(seen.placed[id], **changes)})  # type: ignore[arg-type]


def on_host(name: str, **changes: object) -> Callable[[Evidence], Evidence]:
    return lambda seen: replace(seen, hosts={**seen.hosts, name: replace(seen.hosts[name], **changes)})  # type: ignore[arg-type]


def also(field: str, **entries: object) -> Callable[[Evidence], Evidence]:
    """With more (or other) entries, by name with _ for -, in one of the evidence's tables."""
    more = {key.replace("_", "-"): value for key, value in entries.items()}
    return lambda seen: changed(seen, field, {**getattr(seen, field), **more})


def without(field: str, key: str) -> Callable[[Evidence], Evidence]:
    return lambda seen: changed(
        seen, field, {name: value for name, value in getattr(seen, field).items() if name != key}
    )


def audited(*rows: tuple[str, str]) -> Callable[[Evidence], Evidence]:
    return lambda seen: replace(seen, audit=(*seen.audit, *rows))


WRONG: list[tuple[str, Callable[[Evidence], Evidence], Sort, str]] = [
    ("taken, no row", lambda seen: replace(seen, answered=seen.answered | {"x"}), "lost", "x was taken and has no row"),
    ("no outcome", command("boot-a", state=C.ACCEPTED), "lost", "is still accepted"),
    ("not abandoned", command("boot-d", abandon=True), "lost", "nobody waits for boot-d"),
    ("two outcomes", audited(("boot-a", "VM_BOOT_FAILURE")), "doubled", "too much of boot-a: 'VM_BOOT_FAILURE'"),
    ("the same outcome twice", audited(("boot-a", "VM_CONNECTION_DATA")), "doubled", "too much of boot-a"),
    ("asked twice", audited(("boot-a", "")), "doubled", "too much of boot-a: 'asked for'"),
    ("late twice", audited(("boot-c", "late succeeded")), "doubled", "too much of boot-c: 'late succeeded'"),
    ("late by nobody", audited(("boot-a", "late failed")), "doubled", "too much of boot-a: 'late failed'"),
    ("audit of nothing", audited(("x", "")), "orphan", "knows a command x, and it has no row"),
    (
        "end not in the audit log",
        lambda seen: replace(seen, audit=seen.audit[:-1]),
        "lost",
        "does not say of boot-e: 'VM_BOOT_FAILURE'",
    ),
    (
        "asked, not in the audit log",
        lambda seen: replace(seen, audit=seen.audit[2:]),
        "lost",
        "know the command boot-a",
    ),
    ("done, unheard of", without("journal", "end-b"), "untrue", "the cluster never heard of it"),
    ("cluster undecided", also("journal", boot_e=EntrySeen(None, reported=False)), "lost", "no outcome for boot-e"),
    ("outcome untold", also("journal", boot_e=EntrySeen(C.FAILED, reported=False)), "lost", "has not been taken"),
    (
        "two opinions",
        also("journal", boot_e=EntrySeen(C.SUCCEEDED, reported=True)),
        "untrue",
        "and the cluster says succeeded",
    ),
    ("from nowhere", also("journal", x=EntrySeen(C.FAILED, reported=True)), "orphan", "x that nobody gave"),
    ("told done, undone", also("told", boot_e=C.SUCCEEDED), "untrue", "was told that boot-e has succeeded"),
    ("runs on two hosts", on_host("host-2", guests=("a",)), "doubled", "a runs 2 times: on host-1, host-2"),
    ("runs twice on one", on_host("host-1", guests=("a", "a")), "doubled", "a runs 2 times: on host-1, host-1"),
    ("started while it ran", on_host("host-1", restarted=frozenset("a")), "doubled", "started on host-1 while it ran"),
    ("guest of nobody", on_host("host-2", guests=("x",)), "orphan", "host-2 has a guest of x"),
    ("disk of the gone", on_host("host-2", overlays=frozenset("b")), "orphan", "host-2 has a disk of b, which is gone"),
    ("disk of nobody", on_host("host-2", overlays=frozenset("x")), "orphan", "host-2 has a disk of x"),
    ("record of the gone", on_host("host-2", records={"b": D.GONE}), "orphan", "host-2 has a record of b"),
    ("row without guest", on_host("host-1", guests=()), "orphan", "a runs on host-1, and there is no guest of it"),
    ("row without disk", on_host("host-1", overlays=frozenset()), "orphan", "there is no disk of it"),
    ("row without record", on_host("host-1", records={}), "orphan", "there is no record of it"),
    ("host of nobody", desktop("a", host="host-9"), "orphan", "a is on host-9, which is no host"),
    ("never settles", desktop("a", state=D.STOPPING), "lost", "a is still stopping"),
    ("lost for ever", desktop("a", state=D.LOST), "lost", "a is still lost"),
    ("not shown", without("shown", "a"), "untrue", "the website does not show it"),
    ("shown though gone", also("shown", b=ShownSeen("host-2", D.RUNNING)), "untrue", "shows it running"),
    ("shown otherwise", also("shown", a=ShownSeen("host-1", D.BOOTING)), "untrue", "the website shows it booting"),
    ("shown elsewhere", also("shown", a=ShownSeen("host-2", D.RUNNING)), "untrue", "shows it running on host-2"),
    ("shown, unknown", also("shown", x=ShownSeen("host-1", D.RUNNING)), "untrue", "there is no such desktop"),
    ("destroyed, runs", desktop("b", state=D.RUNNING), "untrue", "b was destroyed, and is running"),
    ("destroyed, guest there", on_host("host-2", guests=("b",)), "untrue", "b was destroyed, and is gone"),
    ("booted, never ran", on_host("host-1", ran=frozenset()), "untrue", "a never ran"),
    ("booted, unknown", without("placed", "a"), "lost", "the cluster does not know it"),
    ("ended, no reason", desktop("a", state=D.FAILED, host=None), "lost", "nobody says why"),
    ("timed out, runs", on_host("host-2", guests=("c",)), "untrue", "boot-c has timed_out, and c runs"),
    ("failed, runs", on_host("host-1", guests=("a", "e")), "untrue", "boot-e has failed, and e runs"),
    ("booted twice", also("commands", x=CommandSeen("x", BOOT, "a", C.FAILED)), "doubled", "booted by two commands"),
    ("booted by nobody", also("placed", x=PlacedSeen(None, D.FAILED, D.GONE)), "orphan", "x that no command booted"),
    (
        "ended by itself where nothing does",
        lambda seen: replace(desktop("a", state=D.FAILED, host=None, reason="It was.")(seen), lasting=True),
        "lost",
        "nobody destroyed it, and it is failed: It was",
    ),
    ("sums", also("used", host_1=(512, 2)), "untrue", "host-1 counts (512, 2)"),
]


def test_a_sound_history_is_not_blamed() -> None:
    assert violations(SOUND) == []


def test_nothing_happened() -> None:
    assert violations(Evidence()) == []


@pytest.mark.parametrize(("spoil", "sort", "sentence"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_said(spoil: Callable[[Evidence], Evidence], sort: Sort, sentence: str) -> None:
    found = violations(spoil(SOUND))
    assert [violation for violation in found if violation.sort == sort and sentence in violation.sentence], found


def test_what_is_not_known_is_not_judged() -> None:
    """A real host keeps no list of what ever ran, and some hosts' journals cannot be read."""
    dim = {name: replace(host, ran=None, records=None, overlays=None) for name, host in SOUND.hosts.items()}
    assert violations(replace(SOUND, hosts=dim, used=None)) == []
