"""``pupitre host``: the agent of this VM server, and the hosts of the cluster."""

from typing import Annotated

import typer

from pupitre.cli.output import As, Json, NoWait, print_fields, print_items, print_json, short_time
from pupitre.errors import Invalid

app = typer.Typer(
    add_completion=False, help="Run this VM server's agent (without a further word); manage the hosts of the cluster."
)

Name = Annotated[str, typer.Argument(metavar="HOST", help="Its name, label or address.")]
AtOnce = Annotated[bool, typer.Option("--at-once", help="End its desktops now instead of warning their users first.")]
Mac = Annotated[str | None, typer.Option("--mac", help="Of the card that wakes it, as 52:54:00:12:34:56.")]


@app.callback(invoke_without_command=True)
def run(context: typer.Context) -> None:
    """Run the agent of this VM server; with a further word, manage the hosts of the cluster."""
    if context.invoked_subcommand is not None:
        return
    from pupitre.host.process import main

    raise typer.Exit(main())


@app.command()
def register(
    name: str,
    address: Annotated[str, typer.Argument(help="Where the gateway reaches its consoles.")],
    port: Annotated[int, typer.Argument(min=1, max=65535)],
    edition: Annotated[bool, typer.Option("--edition", help="A host on which images are edited.")] = False,
    mac: Mac = None,
    no_wait: NoWait = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Make a VM server part of the cluster; its agent must be running."""
    from pupitre.cli.remote.client import order

    body = {"name": name, "address": address, "port": port, "edition": edition, "mac": mac}
    order("POST", "/hosts", body, f"{name} is registered.", who=who, no_wait=no_wait, as_json=as_json)


@app.command()
def configure(
    host: Name,
    label: Annotated[str | None, typer.Option(help="What people call it; empty: its name.")] = None,
    address: Annotated[str | None, typer.Option(help="Where the gateway reaches its consoles.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    edition: Annotated[bool | None, typer.Option("--edition/--no-edition", help="Whether images are edited on it.")] = (
        None
    ),
    mac: Annotated[str | None, typer.Option("--mac", help="Of the card that wakes it; empty: it cannot be woken.")] = (
        None
    ),
    no_wait: NoWait = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Change what is given; the rest stays as it is."""
    from pupitre.cli.remote.client import order, path_of

    given = {"label": label, "address": address, "port": port, "edition": edition, "mac": mac}
    body = {key: value for key, value in given.items() if value is not None}
    if not body:
        raise Invalid("Nothing is to be changed. See: pupitre host configure --help")
    order("PATCH", path_of("hosts", host), body, f"{host} is changed.", who=who, no_wait=no_wait, as_json=as_json)


@app.command("shut-down")
def shut_down(
    host: Name, at_once: AtOnce = False, no_wait: NoWait = False, who: As = None, as_json: Json = False
) -> None:
    """Shut a host's machine down, its desktops first. `pupitre host boot` brings it back."""
    from pupitre.cli.remote.client import order, path_of

    body = {"unregister": False, "at_once": at_once}
    order(
        "POST",
        path_of("hosts", host, "retire"),
        body,
        f"{host} is shut down.",
        who=who,
        no_wait=no_wait,
        as_json=as_json,
    )


@app.command()
def unregister(
    host: Name, at_once: AtOnce = False, no_wait: NoWait = False, who: As = None, as_json: Json = False
) -> None:
    """Take a host out of the cluster, its desktops first."""
    from pupitre.cli.remote.client import order, path_of

    body = {"unregister": True, "at_once": at_once}
    said = f"{host} is no longer part of the cluster."
    order("POST", path_of("hosts", host, "retire"), body, said, who=who, no_wait=no_wait, as_json=as_json)


@app.command()
def boot(host: Name, no_wait: NoWait = False, who: As = None, as_json: Json = False) -> None:
    """Wake a host that was shut down, and wait until its agent is back."""
    from pupitre.cli.remote.client import order, path_of

    order("POST", path_of("hosts", host, "boot"), {}, f"{host} is up.", who=who, no_wait=no_wait, as_json=as_json)


@app.command("list")
def list_(who: As = None, as_json: Json = False) -> None:
    """The hosts of the cluster."""
    from pupitre.cli.remote.client import connect

    with connect(who) as client:
        hosts = client.items("/hosts")
    columns = {"name": "Host", "label": "Label", "state": "State", "desktops": "Desktops", "address": "Address",
               "port": "Port", "edition": "Edition", "since": "Since", "reason": "Reason"}  # fmt: skip
    if not as_json:
        hosts = [
            host
            | {
                "label": host["label"] or None,
                "since": short_time(host["since"]),
                "reason": " ".join(filter(None, [host["reason"], *(one["sentence"] for one in host["warnings"])]))
                or None,
            }
            for host in hosts
        ]
    print_items(hosts, columns, as_json=as_json, none="No hosts yet. Register one: pupitre host register --help")


@app.command()
def show(host: Name, who: As = None, as_json: Json = False) -> None:
    """One host."""
    from pupitre.cli.remote.client import connect, path_of

    with connect(who) as client:
        found = client.get(path_of("hosts", host))
    if as_json:
        print_json(found)
        return
    facts = found["facts"] or {}
    print_fields(
        {
            "Host": found["name"],
            "Label": found["label"] or None,
            "State": found["state"],
            "Since": short_time(found["since"]),
            "Reason": found["reason"],
            "Warnings": " ".join(warning["sentence"] for warning in found["warnings"]) or None,
            "Consoles": f"{found['address']}:{found['port']}",
            "Native viewers": f"port {found['viewer_port']}" if found["viewer_port"] else "not let in",
            "Edition": found["edition"],
            "Wakes by": found["mac"],
            "Desktops": found["desktops"],
            "Memory": f"{facts['memory_mib']} MiB" if facts else None,
            "Processors": facts.get("vcpus"),
            "Disk free": f"{facts['disk_free_mib']} MiB" if facts else None,
            "Hypervisor": f"{facts['hypervisor']} ({facts['accelerator']})" if facts else None,
            "Agent": facts.get("version"),
            "Last heard": short_time(found["heard"]) if found["heard"] else None,
        }
    )
