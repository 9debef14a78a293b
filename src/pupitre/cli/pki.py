"""``pupitre pki``: certificates and the ticket key."""

import json as json_format
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives import hashes

from pupitre import config, pki

app = typer.Typer(add_completion=False, help="Certificates and keys of every process.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]


@app.command()
def create(json: Json = False) -> None:
    """Make what one machine needs: the authority, a certificate for each role, the ticket key. May be repeated."""
    settings = config.load()
    folders = {role: str(pki.ensure_certificate(settings, role)) for role in pki.roles(settings)}
    pki.ensure_ticket_key(settings)
    if json:
        typer.echo(json_format.dumps(folders))
    else:
        for role, folder in folders.items():
            typer.echo(f"{role:16} {folder}")


@app.command()
def issue(
    role: Annotated[str, typer.Argument(help="nats, endpoint, cluster, gateway, portal or host-NAME.")],
    dir: Annotated[Path | None, typer.Option(help="Folder to put it in, to be carried to another machine.")] = None,
    address: Annotated[
        list[str] | None, typer.Option(help="Name or IP address at which viewers reach the host. May be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Make or renew the certificate directory of one role."""
    folder = pki.ensure_certificate(config.load(), role, dir, address or ())
    typer.echo(json_format.dumps({"role": role, "directory": str(folder)}) if json else str(folder))


@app.command()
def show(json: Json = False) -> None:
    """List the certificates of this machine with the day on which they end."""
    rows = []
    for path in sorted(config.load().pki_dir.glob("*/*.crt")):
        role = path.parent.name
        if path.stem != role:
            continue
        certificate = pki.load_certificate(path)
        rows.append(
            {
                "role": role,
                "expires": certificate.not_valid_after_utc.isoformat(),
                "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
                "path": str(path),
            }
        )
    if json:
        typer.echo(json_format.dumps(rows))
    else:
        for row in rows:
            typer.echo(f"{row['role']:16} until {row['expires'][:10]}  {row['path']}")
