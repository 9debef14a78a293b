"""Text of one line that people write and other people read: in pages, terminals, logs and messages.

What cannot be seen, or changes how its neighbours are seen, has no place in it: control
characters (escape sequences, newlines), overrides of the writing direction, and the halves
of a file name that is not UTF-8. The two joiners stay: Persian and Hindi need them.
"""

import unicodedata

REPLACEMENT = "\ufffd"
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""General categories of Unicode: control, format, surrogate, private use, line and paragraph separator."""
JOINERS = "\u200c\u200d"


def is_shown(character: str) -> bool:
    return character in JOINERS or unicodedata.category(character) not in UNSEEN


def text_fault(text: str, longest: int) -> str | None:
    """Fault that keeps ``text`` from being shown, as the end of a sentence; None for a good text."""
    if not text.strip():
        return "is empty"
    if len(text) > longest:
        return f"has {len(text)} characters; at most {longest} are allowed"
    if unseen := next((character for character in text if not is_shown(character)), None):
        return f"contains a character that cannot be shown (U+{ord(unseen):04X})"
    return None


def shown(text: str, longest: int = 1000) -> str:
    """``text`` as it may be shown: what cannot be is replaced, and what is too much is left out."""
    line = "".join(character if is_shown(character) else REPLACEMENT for character in text[: longest + 1])
    return line if len(line) <= longest else line[: longest - 1] + "…"
