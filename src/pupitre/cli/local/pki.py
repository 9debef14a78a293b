"""``pupitre pki``: certificates and the ticket key."""

import json as json_format
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives import hashes

from pupitre import config
from pupitre.config import Settings
from pupitre.domain.certificate import look_again
from pupitre.errors import SetupError
from pupitre.pki import authority, issued_certificates, issuing
from pupitre.pki.authority import Rotation

app = typer.Typer(add_completion=False, help="Certificates and keys of every process.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]


@app.command()
def create(json: Json = False) -> None:
    """Make what one machine needs: the authority, a certificate for each role, the ticket key. May be repeated."""
    settings = config.load()
    folders = {role: str(issuing.ensure_certificate(settings, role)) for role in issuing.roles(settings)}
    issuing.ensure_ticket_key(settings)
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
    folder = issuing.ensure_certificate(config.load(), role, dir, address or ())
    typer.echo(json_format.dumps({"role": role, "directory": str(folder)}) if json else str(folder))


@app.command()
def init(
    new_authority: Annotated[
        bool, typer.Option("--new-authority", help="Replace the authority: whatever it has issued is good no more.")
    ] = False,
    new_ticket_key: Annotated[
        bool, typer.Option("--new-ticket-key", help="Replace the key that signs tickets for consoles.")
    ] = False,
    new_order_key: Annotated[
        bool, typer.Option("--new-order-key", help="Replace the key that signs the cluster's orders to hosts.")
    ] = False,
    json: Json = False,
) -> None:
    """Begin anew with what is lost or was stolen, and issue every certificate of this machine again.

    Other machines are cut off until each has a new directory (`pupitre pki issue ROLE --dir DIR`). With a new order
    key, which is made where the cluster server runs, only another cluster server is: copy the key there. Desktops that
    were started before are no longer taken over by themselves when the cluster's database is restored from a backup.
    """
    settings = config.load()
    if not (new_authority or new_ticket_key or new_order_key):
        raise SetupError(
            "Nothing was said to be made anew.", "Add --new-authority, --new-ticket-key or --new-order-key."
        )
    if new_order_key:
        _replace_order_key(settings)
    if new_ticket_key:
        issuing.replace_ticket_key(settings)
    if new_authority:
        authority.create_anew(settings)
    cuts_off = new_authority or new_ticket_key
    if cuts_off:
        _issue_here(settings)
    _say(
        json, issued_certificates.carried(settings) if cuts_off else [], "Done. Restart the processes of this machine."
    )


def _replace_order_key(settings: Settings) -> None:
    """The database forgets the old key first: a key that it does not know would be refused."""
    import asyncio

    from pupitre.cluster.process import ROLE
    from pupitre.pki.signing import ORDER_KEY, replace_key
    from pupitre.store.cluster import ClusterStore
    from pupitre.store.sql.engine import open_database

    async def forget() -> None:
        store = ClusterStore(open_database(settings, "cluster", "cluster"))
        try:
            await store.forget_order_key()
        finally:
            await store.close()

    asyncio.run(forget())
    replace_key(issuing.directory(settings, ROLE) / ORDER_KEY)


class Step(StrEnum):
    BEGIN = "begin"
    SWITCH = "switch"
    FINISH = "finish"


@app.command()
def rotate(
    step: Annotated[Step | None, typer.Argument(help="begin, switch, finish; without it: where it stands.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Finish although certificates of the old authority are still in use.")
    ] = False,
    json: Json = False,
) -> None:
    """Replace the authority while everything runs, in three steps.

    `begin` makes a new one, which is trusted beside the old one; `switch` has it issue every certificate;
    `finish` ends the trust in the old one. After each step, other machines need their directories anew
    (`pupitre pki issue ROLE --dir DIR`); processes read them without a restart.
    """
    settings = config.load()
    if step is Step.BEGIN:
        authority.begin_rotation(settings)
    elif step is Step.SWITCH:
        _wait_for_readers(settings)
        authority.switch_rotation(settings)
    elif step is Step.FINISH:
        _wait_for_readers(settings)
        if (old := issued_certificates.to_carry(settings)) and not force:
            raise SetupError(
                f"These still have a certificate of the old authority: {', '.join(old)}.",
                "Issue each with `pupitre pki issue ROLE --dir DIR` and copy DIR to its machine; or add --force, which"
                " cuts them off.",
            )
        authority.finish_rotation(settings)
    if step:
        _issue_here(settings)
    stands = authority.rotation(settings)
    _say(json, issued_certificates.carried(settings) if step else [], _NEXT[stands], rotation=stands)


_NEXT = {
    Rotation.NONE: "One authority is trusted; no rotation is under way.",
    Rotation.BEGUN: "Two authorities are trusted, the old one signs. Next: pupitre pki rotate switch",
    Rotation.SWITCHED: "Two authorities are trusted, the new one signs. Next: pupitre pki rotate finish",
}


def _wait_for_readers(settings: Settings) -> None:
    """Every process must have read what the last step wrote. Raises `SetupError` until it has had the time."""
    within = 2 * look_again(settings.certificate_days * 86400)
    left = authority.last_step(settings) + within - time.time() if authority.is_here(settings) else 0
    if left > 0:
        raise SetupError(
            "Processes have not all read what the last step wrote.", f"Run this again in {left:.0f} seconds."
        )


def _issue_here(settings: Settings) -> None:
    for role, own in issuing.roles_here(settings).items():
        issuing.ensure_certificate(own, role)


def _say(json: bool, to_carry: list[str], text: str, **more: str) -> None:
    if json:
        typer.echo(json_format.dumps({"to_carry": to_carry, **more}))
        return
    typer.echo(text)
    if to_carry:
        typer.echo(f"Other machines need these anew (pupitre pki issue ROLE --dir DIR): {', '.join(to_carry)}")


@app.command()
def show(json: Json = False) -> None:
    """List the certificates of this machine with the day on which they end."""
    rows = []
    for path in sorted(config.load().pki_dir.glob("*/*.crt")):
        role = path.parent.name
        if path.stem != role:
            continue
        certificate = issuing.load_certificate(path)
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
