"""``pupitre doctor``: what is well on this machine, and what mends the rest."""

import sys
from dataclasses import asdict

import typer

from pupitre import config
from pupitre.cli.output import Json, print_json

app = typer.Typer(add_completion=False)


@app.command()
def run(as_json: Json = False) -> None:
    """Check this machine. Exit code 1 when something keeps Pupitre from running."""
    from pupitre.doctor import examine

    findings = examine(config.load())
    well = all(finding.well or finding.minor for finding in findings)
    if as_json:
        print_json({"well": well, "findings": [asdict(finding) for finding in findings]})
    else:
        colours = sys.stdout.isatty()
        for finding in findings:
            mark, colour = ("✓", 32) if finding.well else ("!", 33) if finding.minor else ("✗", 31)
            shown = f"\x1b[{colour}m{mark}\x1b[0m" if colours else mark
            print(f"{shown} {finding.check}: {finding.found}")
            if finding.remedy and not finding.well:
                print(f"    → {finding.remedy}")
    raise typer.Exit(0 if well else 1)
