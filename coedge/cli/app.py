"""The commands, and how their errors come out."""

from __future__ import annotations

import json
import sys

import click
import typer

from coedge.cli.demo import demo
from coedge.cli.devices import devices
from coedge.cli.plan import plan
from coedge.cli.run import run
from coedge.errors import CoEdgeError
from coedge.version import VERSION

app = typer.Typer(
    name="coedge",
    help="Run one neural-network inference together on several unequal devices.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (demo, devices, plan, run):
    app.command()(command)


@app.command()
def version(as_json: bool = typer.Option(False, "--json", help="Machine-readable output.")) -> None:
    """The version of this installation."""
    print(json.dumps({"version": VERSION}) if as_json else VERSION)


def run_app() -> int:
    """Exit codes: 0 done, 1 an error (its reason on stderr; with --json on stdout too), 2 wrong usage."""
    try:
        code = app(standalone_mode=False)
        return int(code or 0)
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except CoEdgeError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"error: {error}", file=sys.stderr)
        return 1
