"""Table of the kinds of command: complete, and each row fits its order."""

import pytest

from pupitre.config import Settings
from pupitre.domain.command import BootDesktop, CommandKind, ConfigureHost, Halt, Order, RegisterHost, RetireHost
from pupitre.domain.command_kinds import COMMAND_KINDS, fault_of, order_words
from pupitre.errors import Halted, ShutdownFault, UnregistrationFault
from pupitre.portal.labels import ACTION_WORDS, OUTCOME_WORDS


def test_each_kind_and_each_order_has_one_row() -> None:
    assert COMMAND_KINDS.keys() == set(CommandKind)
    assert {row.order for row in COMMAND_KINDS.values()} == set(Order.__args__)
    assert [kind for kind, row in COMMAND_KINDS.items() if not row.about_hosts] == ["boot_desktop", "destroy_desktop"]


def test_each_kind_has_words_for_pages() -> None:
    for kind, row in COMMAND_KINDS.items():
        assert ACTION_WORDS[kind] == row.title
    faults = [fault_of(order) for order in (RetireHost("h", True), RetireHost("h", False), Halt())]
    assert faults == [UnregistrationFault, ShutdownFault, Halted]
    for fault in faults:
        assert fault.code in OUTCOME_WORDS


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (BootDesktop("d", "tiny"), "Start a desktop of tiny"),
        (BootDesktop("d", "tiny", edition=True), "Start a desktop of tiny to edit its image"),
        (RegisterHost("h", "192.0.2.1", 1, edition=True), "Register h (192.0.2.1:1) as an edition host"),
        (RetireHost("h", True, at_once=True), "Unregister h at once"),
        (ConfigureHost("h"), "Configure h: no change"),
        (ConfigureHost("h", label="left", mac=""), "Configure h: label “left”, no MAC"),
        (Halt(hosts=True), "Halt the cluster and its hosts"),
    ],
)
def test_order_is_said_in_one_line(order: Order, words: str) -> None:
    assert order_words(order) == words


def test_time_limit_is_setting_table_or_default() -> None:
    settings = Settings(command_timeout=50, command_timeouts={CommandKind.HALT: 7})
    assert settings.timeout_of(CommandKind.HALT) == 7
    assert settings.timeout_of(CommandKind.RETIRE_HOST) == 600
    assert settings.timeout_of(CommandKind.BOOT_DESKTOP) == 50
