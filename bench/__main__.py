"""``python -m bench``: measure this machine. With ``--json`` the last line is one line of JSON."""

import json
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pupitre.cli.output import Json

if TYPE_CHECKING:
    from bench.commands import Found

app = typer.Typer(add_completion=False, help="Measure this machine.", no_args_is_help=True)


@app.callback()
def _measured() -> None:
    """Measure this machine."""
    # SIGTERM unwinds like Ctrl-C, so that the measured instance is stopped and removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@app.command()
def idle(
    seconds: Annotated[float, typer.Option(min=1, help="How long to look.")] = 20,
    as_json: Json = False,
) -> None:
    """Cost of all processes while nobody uses them."""
    from bench.idle import measure

    found = measure(seconds)
    print(f"{'':12}{'cores':>8}{'MB':>8}")
    for name, figures in found["by_process"].items():
        print(f"{name:12}{figures['cpu_cores']:8.4f}{figures['rss_mb']:8.1f}")
    print(f"{'all':12}{found['cpu_cores']:8.4f}{found['rss_mb']:8.1f}   (shared pages once: {found['pss_mb']:.1f})")
    if as_json:
        print(json.dumps(found))


@app.command()
def start(
    count: Annotated[int, typer.Option(min=1, max=1000, help="Starts of each kind.")] = 20,
    as_json: Json = False,
) -> None:
    """Time of a desktop's start, against libvirt alone; and from a click to the first picture."""
    from bench.start import measure

    found = measure(count)
    print(f"{'milliseconds':24}{'p50':>10}{'p95':>10}")
    for name, figures in found.items():
        print(f"{name.removesuffix('_ms').replace('_', ' '):24}{figures['p50']:10.1f}{figures['p95']:10.1f}")
    if as_json:
        print(json.dumps(found))


@app.command()
def status(
    desktops: Annotated[int, typer.Option(min=10, max=100_000, help="Desktops that run meanwhile.")] = 1000,
    changes: Annotated[float, typer.Option(min=0.1, max=1000, help="Changes each second.")] = 10,
    seconds: Annotated[float, typer.Option(min=1, help="How long.")] = 10,
    as_json: Json = False,
) -> None:
    """Cost of one change of one desktop for cluster, endpoint and status database."""
    import uvloop

    from bench.status import measure

    found = uvloop.run(measure(desktops, changes, seconds))
    for name, value in found.items():
        print(f"{name.replace('_', ' '):24}{value:>12}")
    if as_json:
        print(json.dumps(found))


@app.command()
def console(as_json: Json = False) -> None:
    """Our gateway and websockify side by side: speed, cost, connections."""
    from bench.console import run

    run(as_json)


@app.command()
def crash(
    kills: Annotated[int, typer.Option(min=1, max=10000, help="Processes to kill, one after the other.")] = 50,
    hypervisor: Annotated[str | None, typer.Option(help="As in the setting; simulated when not given.")] = None,
    image: Annotated[
        str | None, typer.Option(help="Which image starts; for a hypervisor that is not simulated.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Does again what an earlier run has done.")] = None,
    as_json: Json = False,
) -> None:
    """Kill endpoint, cluster, host and broker in turn with 40 starts in flight: what is lost, doubled, left over."""
    from bench.crash import measure

    found = measure(kills, hypervisor=hypervisor, image=image, seed=seed)
    for name, value in found.items():
        print(f"{name.replace('_', ' '):16}{value}")
    if as_json:
        print(json.dumps(found))


@app.command()
def commands(
    database: Annotated[str, typer.Option(help="sqlite, postgresql, mariadb, or all of them.")] = "postgresql",
    clients: Annotated[int, typer.Option(min=1, max=1000, help="People who ask at the same time.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="How long they go on.")] = 10,
    as_json: Json = False,
) -> None:
    """Rate of empty commands that go the whole way, against the bare database; where the time goes."""
    from bench.commands import DATABASES

    if database == "all":
        found = {name: _commands(name, clients, seconds) for name in DATABASES}
        most = found["postgresql"]["rate_per_s"]
        ratios = {name: round(figures["rate_per_s"] / most, 2) for name, figures in found.items()}
        print("  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), "of postgresql's rate")
        told: Mapping[str, object] = {**found, "ratio": ratios}
    else:
        told = _commands(database, clients, seconds)
    if as_json:
        print(json.dumps(told))


def _commands(database: str, clients: int, seconds: float) -> "Found":
    from bench.commands import floor, measure

    bare = floor(database, clients, min(seconds, 5))
    found = measure(database, clients, seconds)
    print(f"{database}: {found['rate_per_s']:.0f} commands/s; the bare database writes {bare:.0f} rows/s")
    print(f"  {clients} clients: p50 {found['p50_ms']:.1f} ms, p95 {found['p95_ms']:.1f} ms")
    print(f"  alone: p95 {found['idle_p95_ms']:.1f} ms")
    for name, value in found["legs_ms"].items():
        print(f"  {name.replace('_', ' '):28}{value:8.1f} ms")
    for name, value in found["cpu_ms"].items():
        print(f"  CPU of {name:21}{value:8.2f} ms a command")
    return found


if __name__ == "__main__":
    app(prog_name="python -m bench")
