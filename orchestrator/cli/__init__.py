"""The command line: `coedge demo | devices | doctor | plan | simulate | pareto | run | bench | lab | version`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code. `coedge` and `python -m coedge` start here."""
    try:
        from orchestrator.cli.app import run_app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        print(
            f"the command line needs {error.name}, which is not installed; run: pip install 'coedge[full]'",
            file=sys.stderr,
        )
        sys.exit(1)
    sys.exit(run_app())
