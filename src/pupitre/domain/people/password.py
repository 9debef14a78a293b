"""Rules for passwords: NIST SP 800-63B, 3.1.1.2. Length counts, and no one's first guess; there are no other rules.

One password typed in two ways is one password: NFKC, as the same document asks for.
"""

import unicodedata

from pupitre.errors import Invalid

MIN_LENGTH = 10
MAX_LENGTH = 512
"""Characters after NFKC, which may be more than were typed."""
FEW = 5
"""So many different characters, or as many beside a word that anybody would try, are too few."""
_OURS = ("pupitre",)


def normalized(typed: str) -> str:
    """The form that is hashed. ``ñ`` is the same whether it was typed as one code point or as two."""
    return unicodedata.normalize("NFKC", typed[: MAX_LENGTH + 1])


def decoded(sent: bytes) -> str:
    """One line of UTF-8, without its end, which a pipe may have made CR LF. Raises `Invalid`."""
    try:
        text = sent.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid("The password is not UTF-8 text. Send it as UTF-8.") from error
    return text.removesuffix("\n").removesuffix("\r")


def check(password: str, *words: str) -> None:
    """Refuse what is too short or long, cannot be typed again, or is easy to guess for who knows ``words``.

    ``password`` is `normalized`; whether it is a common one is for `pupitre.portal.identity.passwords` to say.
    Raises `Invalid`, without the password.
    """
    if len(password) < MIN_LENGTH:
        raise Invalid(f"A password has at least {MIN_LENGTH} characters. Choose a longer one, as a few words.")
    if len(password) > MAX_LENGTH:
        raise Invalid(f"A password has at most {MAX_LENGTH} characters. Choose a shorter one.")
    if any(_cannot_be_typed(sign) for sign in password):
        raise Invalid("The password holds a character that cannot be typed or is not UTF-8 text. Choose another.")
    if len(set(password.casefold())) < FEW:
        raise Invalid(f"The password repeats fewer than {FEW} characters. Choose another, as a few words.")
    plain = password.casefold()
    for word in (*_OURS, *words):
        if len(word) > 2 and word.casefold() in plain and len(plain.replace(word.casefold(), "")) < FEW:
            raise Invalid("The password is little more than a name that others know. Choose another, as a few words.")


def _cannot_be_typed(sign: str) -> bool:
    """Controls, halves of characters, what stands for bytes that nobody could read."""
    return unicodedata.category(sign) in {"Cc", "Cs"} or sign == "\N{REPLACEMENT CHARACTER}"
