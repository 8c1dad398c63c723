"""`coedge lab`: every device as a host of its own on this machine, with shaped links between them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coedge.core.errors import CoEdgeError
from orchestrator.cli.options import Json

if TYPE_CHECKING:
    from orchestrator.lab.state import LabState

lab = typer.Typer(
    help="Run every device of a cluster as a host of its own on this machine: network namespaces, shaped links, Ray.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Option("--lab", help="Name of the lab, if there are several on this machine.")]


@lab.command()
def up(
    file: Annotated[str, typer.Argument(help="Cluster configuration (YAML); see configs/lab.")],
    name: Name = "lab",
    fast_weights: Annotated[
        bool,
        typer.Option("--fast-weights", help="Send weights over separate links that are not shaped."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the lab of a cluster configuration, or bring a running one to the state of the configuration.

    Example: coedge lab up configs/lab/pi4-100mbps.yaml
    """
    from coedge.config.loading import load_config
    from orchestrator.cli.console import busy
    from orchestrator.lab.lab import Lab
    from orchestrator.lab.spec import spec_of

    # The lab follows the file alone: overrides in the environment are meant for a single command.
    spec = spec_of(load_config(file, environment={}), fast_weights)
    started = Lab(name)
    with busy(f"starting {len(spec.devices)} hosts"):
        state = started.up(spec)
    _show(state, as_json)


@lab.command()
def status(name: Name = "lab", as_json: Json = False) -> None:
    """Show the hosts of the lab, their rates, whether Ray runs there, and the bytes they sent and received.

    Example: coedge lab status --json
    """
    from orchestrator.lab.lab import Lab

    _show(Lab(name).status(), as_json)


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="Command and its arguments, after `--`.")],
    name: Name = "lab",
) -> None:
    """Run a command on the host of the source.

    A command that connects to a cluster with the lab's configuration uses the hosts of the lab. The output and the exit
    code are those of the command.

    Example: coedge lab run -- coedge run resnet18 --cluster configs/lab/pi4-100mbps.yaml
    """
    from orchestrator.lab.lab import Lab

    inside, environment = Lab(name).command(command, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(inside[0], inside, environment)
    except OSError as error:
        raise CoEdgeError(f"cannot run {inside[0]}: {error.strerror}") from None


@lab.command()
def rate(
    device: Annotated[str, typer.Argument(help="Device or shared medium of the lab.")],
    rate: Annotated[str, typer.Argument(help="Rate such as 500KB/s or 8Mbit/s; none removes the limit.")],
    only_up: Annotated[bool, typer.Option("--up", help="Change only what the device sends.")] = False,
    only_down: Annotated[bool, typer.Option("--down", help="Change only what the device receives.")] = False,
    name: Name = "lab",
    as_json: Json = False,
) -> None:
    """Change the rate of a device's link while the lab is up, even while a command runs.

    Example: coedge lab rate pi-2 500KB/s --up
    """
    from orchestrator.lab.lab import Lab
    from orchestrator.lab.rates import parse_rate

    both = only_up == only_down
    changed = Lab(name)
    changed.rate(device, parse_rate(rate), up=both or only_up, down=both or only_down)
    _show(changed.status(), as_json)


@lab.command()
def down(name: Name = "lab", as_json: Json = False) -> None:
    """Stop all processes in the lab and remove its hosts and links.

    Example: coedge lab down
    """
    from orchestrator.cli.console import busy
    from orchestrator.lab.lab import Lab

    with busy("stopping the lab"):
        ended = Lab(name).down()
    print(json.dumps({"ended_processes": ended}) if as_json else f"the lab is down ({ended} processes ended)")


def _show(state: LabState, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(state)))
        return
    from orchestrator.cli.console import console, say
    from orchestrator.cli.lab_tables import lab_table, medium_line

    if not state.hosts:
        say("no lab is up")
        return
    console.print(lab_table(state.hosts))
    for medium in state.media:
        say(medium_line(medium))


def _as_json(state: LabState) -> dict[str, Any]:
    return {
        "up": state.head is not None,
        "fast_weights": state.fast_weights,
        "devices": [dataclasses.asdict(host) for host in state.hosts],
        "media": [dataclasses.asdict(medium) for medium in state.media],
    }
