"""Reports of benchmarks: rows with targets, and the raw samples behind them."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.bench.environment import environment as of_machine

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        target: the limit, as text; "" if the figure is only reported.
        holds: whether the limit holds; None if the figure is only reported.
    """

    what: str
    value: float
    unit: str
    target: str = ""
    holds: bool | None = None


@dataclass
class Report:
    name: str
    rows: list[Row] = field(default_factory=list)
    samples: dict[str, list[float]] = field(default_factory=dict)
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%d-%H%M%S"))

    def at_most(self, what: str, value: float, unit: str, limit: float) -> None:
        self.rows.append(Row(what, value, unit, f"<= {limit:g}", value <= limit))

    def at_least(self, what: str, value: float, unit: str, limit: float) -> None:
        self.rows.append(Row(what, value, unit, f">= {limit:g}", value >= limit))

    def note(self, what: str, value: float, unit: str) -> None:
        self.rows.append(Row(what, value, unit))

    def sample(self, what: str, values: Sequence[float]) -> float:
        """Keep raw samples, and return their median."""
        self.samples.setdefault(what, []).extend(values)
        return statistics.median(values)

    def beside(self, ending: str) -> Path:
        """Return the path of a file that belongs to this report."""
        RESULTS.mkdir(exist_ok=True)
        return RESULTS / f"{self.name}-{self.stamp}{ending}"

    def finish(self, as_json: bool) -> None:
        """Save everything under `benchmarks/results`, and print the rows."""
        kept = {
            "name": self.name,
            "environment": environment(),
            "rows": [asdict(row) for row in self.rows],
            "samples": self.samples,
        }
        self.beside(".json").write_text(json.dumps(kept, indent=1), encoding="utf-8")
        if as_json:
            print(json.dumps(kept["rows"]))
            return
        from rich.console import Console
        from rich.table import Table

        table = Table(title=self.name, title_justify="left", header_style="bold")
        for column in ("what", "value", "unit", "target", "holds"):
            table.add_column(column, justify="right" if column == "value" else "left")
        for row in self.rows:
            holds = "" if row.holds is None else "yes" if row.holds else "[red]no[/]"
            table.add_row(row.what, f"{row.value:.3g}", row.unit, row.target, holds)
        Console(width=140).print(table)


def environment() -> dict[str, Any]:
    """Return the machine, library versions and commit."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {**of_machine(), "commit": commit}


def arguments(description: str | None, **counts: int) -> argparse.Namespace:
    """Parse the command line of a benchmark.

    Args:
        counts: names of further options that take a whole number, with their defaults.
    """
    return parser(description, **counts).parse_args()


def parser(description: str | None, **counts: int) -> argparse.ArgumentParser:
    """Return the parser of the options that every benchmark has; arguments as for `arguments`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print the rows as JSON")
    made.add_argument("--quick", action="store_true", help="few samples: does it run?")
    for name, default in counts.items():
        made.add_argument(f"--{name}", type=int, default=default, help=f"{default} by default")
    return made
