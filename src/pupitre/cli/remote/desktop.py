"""``pupitre desktop``: start, stop and look at desktops, through the REST API."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pupitre.cli.output import As, Json, NoWait, print_items, print_json, short_time

app = typer.Typer(add_completion=False, help="Start, stop and look at desktops.", no_args_is_help=True)

Desktop = Annotated[str, typer.Argument(metavar="ID")]
COLUMNS = {"id": "Desktop", "image": "Image", "state": "State", "host": "Host", "since": "Since", "reason": "Reason"}


@app.command()
def start(
    image: Annotated[str, typer.Argument(metavar="IMAGE")],
    edition: Annotated[bool, typer.Option("--edition", help="On a host where images are edited.")] = False,
    no_wait: NoWait = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """Start a desktop from an image, and tell each step until it runs."""
    from pupitre.cli.remote.client import connect, wait_for_outcome

    with connect(who) as client:
        begun = time.monotonic()
        asked = client.post("/desktops", {"image": image, "edition": edition})
        if no_wait:
            _told(asked, f"Asked for: command {asked['command']}, desktop {asked['desktop']}.", as_json)
            return
        wait_for_outcome(client, asked["command"], quiet=as_json)
        desktop = client.get(f"/desktops/{asked['desktop']}")
        seconds = round(time.monotonic() - begun, 3)
    told = f"Desktop {desktop['id']} is {desktop['state']} after {seconds:.1f} s."
    _told(desktop | {"command": asked["command"], "seconds": seconds}, told, as_json)


@app.command()
def stop(desktop: Desktop, no_wait: NoWait = False, who: As = None, as_json: Json = False) -> None:
    """Stop a desktop. What is on its disk is gone with it."""
    from pupitre.cli.remote.client import connect, path_of, wait_for_outcome

    with connect(who) as client:
        asked = client.delete(path_of("desktops", desktop))
        if asked is None:  # it never ran, and is put away at once
            _told({"desktop": desktop, "state": "gone"}, f"Desktop {desktop} is gone.", as_json)
            return
        if no_wait:
            _told(asked, f"Asked for: command {asked['command']}.", as_json)
            return
        command = wait_for_outcome(client, asked["command"], quiet=as_json)
    _told(command, f"Desktop {desktop} is gone.", as_json)


@app.command("list")
def list_(who: As = None, as_json: Json = False) -> None:
    """One's own desktops."""
    from pupitre.cli.remote.client import connect

    with connect(who) as client:
        desktops = client.items("/desktops")
    if not as_json:
        desktops = [desktop | {"since": short_time(desktop["since"])} for desktop in desktops]
    print_items(desktops, COLUMNS, as_json=as_json, none="No desktops. Start one: pupitre desktop start tiny")


@app.command()
def show(desktop: Desktop, who: As = None, as_json: Json = False) -> None:
    """One desktop."""
    from pupitre.cli.remote.client import connect, path_of

    with connect(who) as client:
        found = client.get(path_of("desktops", desktop))
    if as_json:
        print_json(found)
    else:
        print_items([found | {"since": short_time(found["since"])}], COLUMNS, as_json=False, none="")


@app.command()
def console(desktop: Desktop, who: As = None, as_json: Json = False) -> None:
    """A console's address and ticket, good once and for 30 seconds; offer both subprotocols: binary, and the ticket."""
    from pupitre.cli.remote.client import connect, path_of

    with connect(who, lasting=True) as client:
        opened = client.post(path_of("desktops", desktop, "console"), {})
        if as_json:
            print_json(opened)
            return
        print(f"In a browser: {client.origin}/desktops/{desktop}")
        print(f"For programs: {opened['url']}\n  subprotocols: binary, {opened['ticket']}")


@app.command()
def viewer(
    desktop: Desktop,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to put it. Default: ID.vv here.")] = None,
    ca: Annotated[
        bool, typer.Option("--ca", help="Have remote-viewer believe this lab's authority, for ever.")
    ] = False,
    who: As = None,
    as_json: Json = False,
) -> None:
    """A connection file for remote-viewer, good once and for 60 seconds; some hosts let no native viewer in."""
    from pupitre.cli.remote.client import connect, path_of
    from pupitre.cli.remote.viewer import add_authority, home, knows, write_connection

    path = output or Path(f"{path_of(desktop)[1:]}.vv")
    with connect(who, lasting=True) as client:
        authority = client.file("GET", "/authority")
        if ca:
            add_authority(home(), authority)
        write_connection(path, client.file("POST", path_of("desktops", desktop, "viewer")).decode())
    known = knows(home(), authority)
    _told({"file": str(path), "authority_known": known}, f"Within 60 seconds: remote-viewer {path}", as_json)
    if not known:
        print("remote-viewer does not know this lab's authority: add --ca, once for this user.", file=sys.stderr)


def _told(value: Any, sentence: str, as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        print(sentence, file=sys.stdout)
