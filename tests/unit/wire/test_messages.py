"""Messages: what version 1 wrote decodes for ever; anything else is a `MessageError` and nothing worse."""

import contextlib
import json
from dataclasses import replace
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.command import (
    BootDesktop,
    BootUpHost,
    CommandKind,
    CommandState,
    ConfigureHost,
    DestroyDesktop,
    Fault,
    Halt,
    Order,
    RegisterHost,
    RetireHost,
)
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostAct, HostFacts, HostState
from pupitre.domain.image import CopyState, DiskFormat, Image, ImageSpec
from pupitre.domain.report import CopyReport, DesktopReport, HostFinding, LastKnownPosition, LeftOut
from pupitre.domain.signed_manifest import SignedManifest
from pupitre.domain.status import HostImage, Rows
from pupitre.domain.warning import HostWarning
from pupitre.errors import MessageError
from pupitre.wire.messages import (
    MAX_SIZE,
    VERSIONS,
    Abandon,
    AnyMessage,
    AuditNotice,
    Changed,
    Describe,
    Done,
    EnsureDesktop,
    EnsureGone,
    GetPage,
    Heartbeat,
    HostShutdownNotice,
    MessageBatch,
    Outcome,
    Page,
    PowerOff,
    Refused,
    Report,
    RevokeSessions,
    StatusPosition,
    StatusQuery,
    Submit,
    decode,
    encode,
)
from pupitre.wire.salvage import MOST_FAULTS
from tests import ROOT

GOLDEN = ROOT / "tests/golden"
DESKTOP_ID = "0190aaaa-0000-7000-8000-0000000000d1"
USER = "0190aaaa-0000-7000-8000-0000000000a1"
COMMAND = "0190aaaa-0000-7000-8000-0000000000c1"
NOTE = "0190aaaa-0000-7000-8000-0000000000f1"
SPEC = ImageSpec(
    "tiny", "d" * 64, DiskFormat.QCOW2, 256, 1, kernel="e" * 64, initrd="f" * 64, cmdline="quiet", disk_gib=3
)
IMAGE = Image("tiny", "Tiny", "A very small système.", CopyState.READY, 1700000000000, 256, 1, progress=0.5, reason="x")
FACTS = HostFacts(16000, 8, 90000, "qemu:///embed", "kvm", "QEMU 7.2")
ROWS = Rows(
    hosts=(Host("host-1", HostState.READY, "127.0.0.1", 4433, False, 1700000000000, facts=FACTS),),
    copies=(HostImage("host-1", IMAGE), HostImage("host-2", IMAGE, gone=True)),
    desktops=(Desktop(DESKTOP_ID, USER, "tiny", "host-1", DesktopState.RUNNING, 1700000000001, 1700000000000, boot=1),),
)
SAMPLES: dict[str, AnyMessage] = {
    "hello": StatusQuery(),
    "mark": StatusPosition(epoch=3, sequence=14),
    "submit": Submit(id=COMMAND, user=USER, order=BootDesktop(DESKTOP_ID, "tiny"), deadline=1700000120000),
    "abandon": Abandon(id=COMMAND, user=USER, order=DestroyDesktop(DESKTOP_ID), deadline=1700000120000),
    "get_page": GetPage(section="desktops", after=DESKTOP_ID),
    "page": Page(epoch=3, sequence=14, rows=ROWS, next=DESKTOP_ID),
    "changed": Changed(epoch=3, after=13, sequence=14, rows=ROWS),
    "outcome": Outcome(
        id=COMMAND, state=CommandState.FAILED, fault=Fault("VM_BOOT_FAILURE", "why"), rows=ROWS, epoch=3, sequence=14
    ),
    "noted": AuditNotice(id=NOTE, at=1700000000000, action="host_lost", subject="host-1", detail="It does not answer."),
    "end_sign_ins": RevokeSessions(bearers=("a" * 64,), epoch=3),
    "describe": Describe(epoch=3),
    "ensure_desktop": EnsureDesktop(epoch=3, desktop=DESKTOP_ID, boot=1, spec=SPEC),
    "ensure_gone": EnsureGone(epoch=3, desktop=DESKTOP_ID),
    "power_off": PowerOff(epoch=3, at_once=True),
    "report": Report(
        host="host-1", run="r1", number=7, full=True, port=4433, facts=FACTS,
        desktops=(DesktopReport(DESKTOP_ID, 1, DesktopState.FAILED, "why"),),
        copies=(CopyReport(IMAGE, SPEC), CopyReport(IMAGE)),
    ),
    "heartbeat": Heartbeat(host="host-1", run="r1", number=7),
    "farewell": HostShutdownNotice(host="host-1", run="r1"),
    "bundle": MessageBatch(parts=(msgspec.Raw(b'{"type":"hello","v":1}'), msgspec.Raw(b"null"))),
    "done": Done(),
    "refused": Refused(code="message_error", reason="why"),
}  # fmt: skip
FINDING = HostFinding(NOTE, 1700000000000, HostAct.OVERLAY_REMOVED, DESKTOP_ID, "why")
HOST = Host(
    "host-1",
    HostState.DRAINING,
    "192.0.2.1",
    4433,
    True,
    1700000000000,
    "why",
    FACTS,
    "Room 5",
    "52:54:00:12:34:56",
    5999,
)
ORDERS: dict[str, Order] = {
    "boot_desktop": BootDesktop(DESKTOP_ID, "tiny", edition=True),
    "destroy_desktop": DestroyDesktop(DESKTOP_ID),
    "register_host": RegisterHost("host-1", "192.0.2.1", 4433, edition=True, mac="52:54:00:12:34:56"),
    "retire_host": RetireHost("host-1", unregister=True, at_once=True),
    "boot_up_host": BootUpHost("host-1"),
    "configure_host": ConfigureHost("host-1", label="Room 5", address="192.0.2.2", port=4434, edition=False, mac=""),
    "halt": Halt(hosts=True),
}
GROWN: dict[str, AnyMessage] = {
    "ensure_gone-grace": EnsureGone(epoch=3, desktop=DESKTOP_ID, grace=30),
    "report-findings": Report(
        host="host-1", run="r1", number=7, full=False, port=4433, viewer_port=5999, findings=(FINDING,)
    ),
    "report-warnings": Report(
        host="host-1", run="r1", number=7, full=False, port=4433, warnings=(HostWarning("clock_ahead", 40, "why"),)
    ),
    "changed-host-warnings": Changed(
        epoch=3, after=13, sequence=14, rows=Rows(hosts=(replace(HOST, warnings=(HostWarning("newer_code", -1),)),))
    ),
    "ensure_desktop-proof": EnsureDesktop(
        epoch=3, desktop=DESKTOP_ID, boot=1, spec=SPEC, sequence=4, owner=USER, proof="YQ.Yg-_"
    ),
    "ensure_gone-proof": EnsureGone(epoch=3, desktop=DESKTOP_ID, sequence=5, proof="YQ.Yg-_"),
    "report-proof": Report(
        host="host-1",
        run="r1",
        number=7,
        full=True,
        port=4433,
        desktops=(DesktopReport(DESKTOP_ID, 1, DesktopState.RUNNING, None, USER, "tiny", 256, 1, "YQ.Yg-_"),),
        heard=LastKnownPosition(2, 9, "YQ.Yg-_"),
        left_out=(LeftOut("copies", 3, 1, "why"),),
    ),
    "report-manifests": Report(
        host="host-1",
        run="r1",
        number=7,
        full=False,
        port=4433,
        copies=(CopyReport(IMAGE, SPEC, "a" * 64),),
        manifests=(SignedManifest("{}", "b" * 64, "c" * 128),),
    ),
    "report-memory": Report(
        host="host-1",
        run="r1",
        number=7,
        full=False,
        port=4433,
        facts=replace(FACTS, guests_mib=2048, over_books_mib=96),
    ),
    "heartbeat-at": Heartbeat(host="host-1", run="r1", number=7, at=1700000000000),
    "changed-host": Changed(epoch=3, after=13, sequence=14, rows=Rows(hosts=(HOST,))),
    **{
        f"submit-{kind}": Submit(id=COMMAND, user=USER, order=order, deadline=1700000120000)
        for kind, order in ORDERS.items()
    },
}
"""What types have grown since, in fields with a default."""


@pytest.mark.parametrize("name", [*SAMPLES, *GROWN])
def test_version_1_decodes_for_ever(name: str) -> None:
    assert decode((GOLDEN / f"v1/{name}.json").read_bytes()) == (SAMPLES | GROWN)[name]


def test_every_order_has_a_golden_file() -> None:
    assert {str(kind) for kind in CommandKind} == ORDERS.keys()


def test_there_is_a_golden_file_of_every_type_in_every_version() -> None:
    tags = {kind.__struct_config__.tag for kind in get_args(AnyMessage)}
    assert tags == SAMPLES.keys()
    for version in VERSIONS:
        assert tags <= {path.stem for path in (GOLDEN / f"v{version}").glob("*.json")}


@pytest.mark.parametrize("message", [*SAMPLES.values(), *GROWN.values()], ids=lambda message: type(message).__name__)
def test_there_and_back(message: AnyMessage) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize("name", SAMPLES)
def test_a_field_that_a_later_version_adds_is_ignored(name: str) -> None:
    fields = msgspec.json.decode((GOLDEN / f"v1/{name}.json").read_bytes())
    assert decode(msgspec.json.encode({**fields, "later": {"some": ["thing"]}})) == SAMPLES[name]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b'{"type":"nonsense"}',
        b'{"type":"mark","epoch":"three","sequence":1}',
        b'{"type":"mark","epoch":1e400,"sequence":1}',
        b'{"type":"mark","epoch":%s,"sequence":1}' % (b"9" * 400),
        b'{"type":"report"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"type":"get_page","section":' + b'{"a":' * 50_000,
        b" " * (MAX_SIZE + 1),
    ],
    ids=lambda data: str(data[:24]),
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    _never_anything_worse(data)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_message_with_anything_in_its_fields(name: str, data: st.DataObject) -> None:
    fields = msgspec.json.decode(encode(SAMPLES[name]))
    for key in data.draw(st.lists(st.sampled_from(sorted(fields)))):
        fields[key] = data.draw(_values)
    _never_anything_worse(json.dumps(fields).encode())


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_a_message_with_bytes_that_are_damaged(name: str, data: st.DataObject) -> None:
    body = bytearray(encode(SAMPLES[name]))
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=5)):
        body[position] = data.draw(st.integers(0, 255))
    _never_anything_worse(bytes(body))


def _never_anything_worse(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(decode(data), get_args(AnyMessage))


def test_rows_know_whether_there_are_any() -> None:
    assert not Rows()
    assert replace(Rows(), hosts=ROWS.hosts)


def test_faulty_items_are_looked_at_only_up_to_a_bound() -> None:
    """A list of half a million of them costs no more than a hundred do."""
    copy = msgspec.json.decode(encode(SAMPLES["report"]))["copies"][0]
    report = msgspec.json.decode(encode(SAMPLES["report"])) | {"copies": [copy, *[0] * MOST_FAULTS, copy]}
    decoded = decode(msgspec.json.encode(report))
    assert isinstance(decoded, Report)
    assert len(decoded.copies or ()) == 1, "what comes after them is left out"
    assert (decoded.left_out[0].there, decoded.left_out[0].unused) == (MOST_FAULTS + 2, MOST_FAULTS + 1)
    report["copies"] = [copy, *[0] * (MOST_FAULTS - 1), copy]
    decoded = decode(msgspec.json.encode(report))
    assert isinstance(decoded, Report)
    assert len(decoded.copies or ()) == 2
