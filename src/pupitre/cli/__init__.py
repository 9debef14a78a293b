"""The command line. Every command is imported when it is asked for, so that each process carries only its own.

What goes wrong is one sentence on standard error and exit code 1, or 2 when this
machine lacks something (then the sentence says what mends it). Nobody sees a traceback
for what `errors` foresees.
"""

import sys


def main() -> None:
    """The entry point of ``pupitre``."""
    from pupitre.cli.root import app
    from pupitre.errors import PupitreError, SetupError

    try:
        app(prog_name="pupitre")
    except PupitreError as error:
        print(f"pupitre: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SetupError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
