"""`coedge lab`: a host of its own for every device, on this machine, with shaped links between them."""

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
    help="Hosts of their own for the devices of a cluster, on this machine: namespaces, shaped links, Ray inside.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Option("--lab", help="Name of the lab, where there are several on this machine.")]


@lab.command()
def up(
    file: Annotated[str, typer.Argument(help="Cluster configuration (YAML), such as those in configs/lab.")],
    name: Name = "lab",
    fast_weights: Annotated[
        bool,
        typer.Option("--fast-weights", help="Weights go to the devices by links of their own, which are not shaped."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Starts the lab of a cluster configuration, or completes it. Twice is the same as once.

    Example: coedge lab up configs/lab/pi4-100mbps.yaml
    """
    from coedge.config.loading import load_config
    from orchestrator.cli.render import busy
    from orchestrator.lab.lab import Lab
    from orchestrator.lab.spec import spec_of

    # As the file says, with nothing of the environment: what it changes for one command is not the lab's.
    spec = spec_of(load_config(file, environment={}), fast_weights)
    made = Lab(name)
    with busy(f"starting {len(spec.devices)} hosts"):
        state = made.up(spec)
    _show(state, as_json)


@lab.command()
def status(name: Name = "lab", as_json: Json = False) -> None:
    """Shows the hosts of the lab, their rates, what runs there, and what they sent and received.

    Example: coedge lab status --json
    """
    from orchestrator.lab.lab import Lab

    _show(Lab(name).status(), as_json)


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, behind `--`.")],
    name: Name = "lab",
) -> None:
    """Runs a command on the source's host. A cluster that it connects to from the lab's file is the lab.

    Ends as the command does, with its exit code.

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
    device: Annotated[str, typer.Argument(help="A device of the lab, or a medium.")],
    rate: Annotated[str, typer.Argument(help="Such as 500KB/s or 8Mbit/s, or none.")],
    only_up: Annotated[bool, typer.Option("--up", help="Only what the device sends.")] = False,
    only_down: Annotated[bool, typer.Option("--down", help="Only what it receives.")] = False,
    name: Name = "lab",
    as_json: Json = False,
) -> None:
    """Changes the rate of a device's link while the lab is up, also under a running command.

    Example: coedge lab rate pi-2 500KB/s --up
    """
    from orchestrator.lab.lab import Lab
    from orchestrator.lab.spec import parse_rate

    both = only_up == only_down
    changed = Lab(name)
    changed.rate(device, parse_rate(rate), up=both or only_up, down=both or only_down)
    _show(changed.status(), as_json)


@lab.command()
def down(name: Name = "lab", as_json: Json = False) -> None:
    """Ends everything in the lab, and leaves nothing of it.

    Example: coedge lab down
    """
    from orchestrator.lab.lab import Lab

    ended = Lab(name).down()
    print(json.dumps({"ended_processes": ended}) if as_json else f"the lab is down ({ended} processes ended)")


def _show(state: LabState, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_as_json(state)))
        return
    from orchestrator.cli.render import console, say
    from orchestrator.cli.render_lab import lab_table, medium_line

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
