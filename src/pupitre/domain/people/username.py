"""Sign-in names: what may be one, and when two that are typed differently are the same.

RFC 8265 (PRECIS), profile UsernameCaseMapped: capitals, full-width letters and composed
characters make no difference, and no name holds a blank, a control or an invisible
character. What is stored, searched and counted is the form that `canonical` gives;
how somebody is shown on pages is a text of its own (`display_name`).
"""

import unicodedata

from precis_i18n import get_profile

from pupitre.errors import Invalid

MAX_LENGTH = 128
"""Characters; e-mail addresses of schools are longer than 64."""
MAX_DISPLAY = 64
_PUNCTUATION = frozenset("._-+'@")
"""What e-mail addresses and names hold besides letters and digits; a slash, say, would end a part of an address."""
_APOSTROPHES = str.maketrans("\N{RIGHT SINGLE QUOTATION MARK}\N{MODIFIER LETTER APOSTROPHE}", "''")
"""Telephones type the first one by themselves."""
_profile = get_profile("UsernameCaseMapped")
_shown = get_profile("NicknameCasePreserved")


def canonical(typed: str) -> str | None:
    """The one form of every way to type this name; None for what can be nobody's name."""
    text = typed.strip().translate(_APOSTROPHES)
    if not 0 < len(text) <= MAX_LENGTH:
        return None
    try:
        name = str(_profile.enforce(text))
    except UnicodeEncodeError:
        return None
    if len(name) > MAX_LENGTH or not name[0].isalnum() or not all(map(_may_stand, name)):
        return None
    return name


def checked(typed: str) -> str:
    """The form under which the name is stored. Raises `Invalid`, without what was typed."""
    name = canonical(typed)
    if name is None:
        raise Invalid(
            f"A sign-in name has 1 to {MAX_LENGTH} letters, digits and signs of . _ - + ' @, and begins with a letter"
            " or digit: ana, Ana.Díaz or ana@example.org. Choose another."
        )
    return name


def checked_display(typed: str) -> str:
    """A name to be shown (RFC 8266); empty for none. Raises `Invalid`, without what was typed."""
    if not typed.strip():
        return ""
    try:
        text = str(_shown.enforce(typed))
    except UnicodeEncodeError:
        text = ""
    if not 0 < len(text) <= MAX_DISPLAY or not text.isprintable():
        raise Invalid(
            f"A name to be shown has at most {MAX_DISPLAY} characters, none of them invisible or a line break."
            " Choose another."
        )
    return text


def _may_stand(sign: str) -> bool:
    return sign in _PUNCTUATION or sign.isalnum() or unicodedata.category(sign).startswith("M")
