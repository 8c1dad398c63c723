"""The report of a comparison: tables and pictures, or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.bench.comparison import Comparison, Sample
    from orchestrator.bench.table import Mean, Row


def present(comparison: Comparison, samples: Iterable[Sample], folder: Path, links: bool, as_json: bool) -> None:
    """Draw the pictures of a comparison into its folder, and print its tables or JSON.

    Args:
        links: whether to print the bytes on every link.
    """
    from orchestrator.bench.table import means_of, rows_of
    from orchestrator.cli.bench_plot import draw

    rows = rows_of(comparison.cases, samples)
    means = means_of(rows)
    pictures = [path.name for path in draw(rows, comparison, folder)]
    if as_json:
        print(json.dumps(_as_json(rows, means, folder, pictures)))
        return
    for model in dict.fromkeys(row.case.model for row in rows):
        _show_model([row for row in rows if row.case.model == model], comparison, links)
    _show_means(rows, means)
    from orchestrator.cli.console import say

    files = ", ".join(["samples", "plans", "profiles", "timelines (for Perfetto)", *pictures])
    say(f"results in {folder}: {files}")


def _as_json(rows: Sequence[Row], means: Sequence[Mean], folder: Path, pictures: Sequence[str]) -> dict[str, Any]:
    from orchestrator.bench.table import losses_of, mean_to_bound

    losses = [{"model": row.case.model, "scheme": row.case.scheme, "to_auto": row.to_auto} for row in losses_of(rows)]
    return {
        "folder": str(folder),
        "rows": [_row(row) for row in rows],
        "means": [asdict(mean) for mean in means],
        "auto_to_bound": mean_to_bound(rows),
        "losses": losses,
        "pictures": pictures,
    }


def _row(row: Row) -> dict[str, Any]:
    values = {key: value for key, value in asdict(row).items() if key != "case"}
    return {**row.case.model_dump(mode="json"), **values, "error": row.error, "to_bound": row.to_bound}


def _show_model(rows: Sequence[Row], comparison: Comparison, links: bool) -> None:
    from orchestrator.cli.bench_table import links_table, model_table
    from orchestrator.cli.console import console, say

    console.print(model_table(rows, comparison))
    for row in rows:
        if row.case.problem:
            say(f"* {row.case.scheme}: {row.case.problem}")
    for row in rows:
        if row.case.same_as:
            say(f"  {row.case.scheme}: same plan as {row.case.same_as}, which ran it")
        if row.case.note and not row.case.problem:
            say(f"  {row.case.scheme}: {row.case.note}")
    if links:
        console.print(links_table(rows))


def _show_means(rows: Sequence[Row], means: Sequence[Mean]) -> None:
    from orchestrator.bench.table import losses_of, mean_to_bound
    from orchestrator.cli.bench_table import losses_line, means_table
    from orchestrator.cli.console import console, say

    if not means:
        return
    console.print(means_table(means, mean_to_bound(rows)))
    single_device = list(dict.fromkeys(row.case.scheme for row in rows if row.case.alone))
    if single_device:
        say(f"{', '.join(single_device)}: on the fastest device, which already has the input; no link counts")
    say(losses_line(losses_of(rows)))
