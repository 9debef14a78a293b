"""Words of pages: one for every state and code, said in one place."""

import re
from pathlib import Path

import pupitre
from pupitre.domain.console_link import CloseCode
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from pupitre.portal.labels import CLOSE_WORDS, HOST_WORDS, STATE_WORDS, console_words

STATIC = Path(pupitre.__file__).parent / "portal/static"


def test_every_state_has_words() -> None:
    assert STATE_WORDS.keys() == set(DesktopState)
    assert HOST_WORDS.keys() == set(HostState)


def test_console_has_words_for_every_state_and_close_code() -> None:
    words = console_words()
    assert words["states"].keys() == {str(state) for state in DesktopState if state is not DesktopState.RUNNING}
    assert {str(int(code)) for code in CloseCode} < words["closes"].keys()
    assert all(re.fullmatch(r"[A-Z].*\.", sentence) for sentence in CLOSE_WORDS.values())


def test_scripts_hold_no_words_of_states() -> None:
    for script in STATIC.glob("*.js"):
        text = script.read_text()
        assert not [sentence for sentence in CLOSE_WORDS.values() if sentence in text], script.name
        assert not [words for words in STATE_WORDS.values() if f'"{words}' in text], script.name
