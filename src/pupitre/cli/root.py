"""The table of commands: each name, its one line of help, and the module that is imported when it is used."""

import importlib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pupitre import __version__


class Entry(NamedTuple):
    """``app`` is ``module:attribute``; an app of a single command is that command."""

    app: str
    help: str


COMMANDS: Mapping[str, Entry] = {
    "up": Entry("pupitre.cli.local.up:app", "Run everything on this machine until Ctrl-C."),
    "status": Entry("pupitre.cli.remote.status:app", "What runs here, and how it is."),
    "doctor": Entry("pupitre.cli.local.doctor:app", "Check this machine and say what mends what."),
    "desktop": Entry("pupitre.cli.remote.desktop:app", "Start, stop and look at desktops."),
    "command": Entry("pupitre.cli.remote.command:app", "What was asked for, and what became of it."),
    "image": Entry("pupitre.cli.local.image:app", "Build, import, list and remove images."),
    "user": Entry("pupitre.cli.remote.user:app", "Accounts, their passwords and tokens."),
    "host": Entry("pupitre.cli.remote.host:app", "Run this VM server's agent; manage the hosts."),
    "audit": Entry("pupitre.cli.remote.audit:app", "Who asked for what, and what came of it."),
    "db": Entry("pupitre.cli.local.db:app", "Create and upgrade the databases."),
    "pki": Entry("pupitre.cli.local.pki:app", "Certificates of all roles."),
    "portal": Entry("pupitre.cli.local.process:portal", "Run the portal alone, behind a proxy or by itself."),
    "gateway": Entry("pupitre.cli.local.process:gateway", "Run the console gateway alone."),
    "web": Entry("pupitre.cli.local.process:web", "Run portal and gateway on one port."),
    "endpoint": Entry("pupitre.cli.local.process:endpoint", "Run the endpoint: it joins the web with the cluster."),
    "cluster": Entry("pupitre.cli.local.cluster:app", "Run the cluster server; halt the cluster."),
}


class LazyGroup(TyperGroup):
    """Lists its commands from the table; imports a module only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.app.partition(":")
        command = get_command(getattr(importlib.import_module(module), attribute))
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup,
    help="Pupitre: every student's computer in a browser tab.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"pupitre {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pupitre: every student's computer in a browser tab."""
