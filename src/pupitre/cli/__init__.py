"""The command line. Every command is imported when it is asked for, so that each process carries only its own.

What goes wrong is one sentence on standard error and exit code 1, or 2 when this
machine lacks something (then the sentence says the remedy). Nobody sees a traceback,
whatever was given; for a fault of our own, `PUPITRE_LOG_LEVEL=debug` shows it.
"""

import os
import sys
import traceback

FAULT = 70
"""Exit code for a fault of our own: EX_SOFTWARE of sysexits.h."""
LONGEST = 4000
"""Characters of a sentence."""


def main() -> None:
    """The entry point of ``pupitre``."""
    from pupitre.cli.root import app

    for stream in (sys.stdout, sys.stderr):
        # A name is shown whatever the terminal's encoding, and never ends the command that shows it.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        app(prog_name="pupitre")
    except SystemExit as ended:
        try:
            # Typer makes exit code 1 of it, which means that something went wrong.
            if isinstance(ended.__context__, BrokenPipeError):
                raise ended.__context__
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader has gone, as `head` does. The interpreter must not flush to it once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
            sys.exit(141)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001
        sentence, code = _explain(error)
        from pupitre.domain.text import shown

        print(f"pupitre: {shown(sentence, LONGEST)}", file=sys.stderr)
        sys.exit(code)


def _explain(error: Exception) -> tuple[str, int]:
    """A sentence for the person, and the exit code."""
    from pupitre.errors import PupitreError, SetupError, setup_error

    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError):
        error = setup_error(error)
    if isinstance(error, PupitreError):
        return str(error), 2 if isinstance(error, SetupError) else 1
    if isinstance(error, UnicodeError):
        return "What was given is not UTF-8 text. Write it as UTF-8.", 1
    if os.environ.get("PUPITRE_LOG_LEVEL", "").lower() == "debug":
        traceback.print_exception(error)
    return (
        f"A fault of Pupitre itself: {type(error).__name__}: {error}. Please report it; with PUPITRE_LOG_LEVEL=debug"
        " the same command shows where it comes from.",
        FAULT,
    )
