"""``pupitre web|portal|gateway|endpoint``: one process each, as `up` or a unit file starts it."""

import typer

portal, gateway, web, endpoint = (typer.Typer(add_completion=False) for _ in range(4))


@web.command()
def run_web() -> None:
    """Run portal and gateway on one port and one origin."""
    from pupitre.net import ops
    from pupitre.web import run_web as main

    raise typer.Exit(ops.run_process("web", main))


@portal.command()
def run_portal() -> None:
    """Run the portal alone: pages, REST API and live events on portal_port."""
    from pupitre.net import ops
    from pupitre.web import run_portal as main

    raise typer.Exit(ops.run_process("portal", main))


@gateway.command()
def run_gateway() -> None:
    """Run the console gateway alone, on gateway_port."""
    from pupitre.net import ops
    from pupitre.web import run_gateway as main

    raise typer.Exit(ops.run_process("gateway", main))


@endpoint.command()
def run_endpoint() -> None:
    """Run the endpoint: commands go to the cluster, status comes back."""
    from pupitre.endpoint.process import run
    from pupitre.net import ops

    raise typer.Exit(ops.run_process("endpoint", run))
