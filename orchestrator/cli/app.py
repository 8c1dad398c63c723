"""The commands, and how their errors come out."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from coedge.core.errors import CoEdgeError
from coedge.core.version import VERSION
from orchestrator.cli.bench import bench
from orchestrator.cli.demo import demo
from orchestrator.cli.devices import devices
from orchestrator.cli.lab import lab
from orchestrator.cli.pareto import pareto
from orchestrator.cli.plan import plan
from orchestrator.cli.run import run
from orchestrator.cli.simulate import simulate

app = typer.Typer(
    name="coedge",
    help="Run one neural-network inference together on several unequal devices.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Typer stands on click, which newer versions carry inside: the base of its errors is found from Typer's own.
ClickError: Any = typer.BadParameter.__bases__[0].__bases__[0]

for command in (demo, devices, plan, simulate, pareto, run, bench):
    app.command()(command)
app.add_typer(lab, name="lab")


@app.command()
def version(as_json: bool = typer.Option(False, "--json", help="Machine-readable output.")) -> None:
    """The version of this installation.

    Example: coedge version
    """
    print(json.dumps({"version": VERSION}) if as_json else VERSION)


def run_app() -> int:
    """Exit codes: 0 done, 1 an error (its reason on stderr; with --json on stdout too), 2 wrong usage."""
    try:
        code = app(standalone_mode=False)
        return int(code or 0)
    except ClickError as error:
        _say_as_json(error, error.format_message())
        error.show()
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except CoEdgeError as error:
        _say_as_json(error, str(error))
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _say_as_json(error, text)
        print(f"error: {text}", file=sys.stderr)
        return 1


def _say_as_json(error: Exception, message: str) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": type(error).__name__, "message": message}))
