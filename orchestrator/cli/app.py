"""The application: all commands, and exit codes for errors."""

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
from orchestrator.cli.doctor import doctor
from orchestrator.cli.lab import lab
from orchestrator.cli.options import Json
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
# Newer versions of Typer contain their own copy of click, so the base class of its errors is found from Typer.
ClickError: Any = typer.BadParameter.__bases__[0].__bases__[0]

for command in (demo, devices, doctor, plan, simulate, pareto, run, bench):
    app.command()(command)
app.add_typer(lab, name="lab")


@app.command()
def version(as_json: Json = False) -> None:
    """Show the installed version.

    Example: coedge version
    """
    print(json.dumps({"version": VERSION}) if as_json else VERSION)


def run_app() -> int:
    """Run the command of `sys.argv` and return its exit code.

    The codes are 0 for success, 1 for an error, 2 for wrong usage and 130 for an interruption. The reason of an error
    goes to stderr and, with --json, also to stdout as a JSON object.
    """
    try:
        code = app(standalone_mode=False)
        return int(code or 0)
    except ClickError as error:
        _print_json(error, error.format_message())
        error.show()
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except CoEdgeError as error:
        return _fail(error, str(error))
    except OSError as error:
        return _fail(error, f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(error: Exception, message: str) -> int:
    _print_json(error, message)
    print(f"error: {message}", file=sys.stderr)
    return 1


def _print_json(error: Exception, message: str) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": type(error).__name__, "message": message}))
