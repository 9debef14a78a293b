"""What atheris feeds to the decoder, as a program of its own: ``python -m tests.rigs.fuzz_messages CORPUS``.

It ends with 0 when nothing worse than a `MessageError` came of any bytes, and whatever
was a message still is the same one after another round trip.
"""

import sys

import atheris

with atheris.instrument_imports(include=["pupitre.wire.messages"]):
    from pupitre.wire import messages

from pupitre.errors import MessageError


def one(data: bytes) -> None:
    try:
        message = messages.decode(data)
    except MessageError:
        return
    assert messages.decode(messages.encode(message)) == message


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
