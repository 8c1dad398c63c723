"""MyST directives that make result tables from saved samples when the pages are built.

    ```{comparisons}      the folders here that `coedge bench --out` wrote (comparison.json, samples.csv)
    ```{paper-figures}    the file that `python -m benchmarks.paper` wrote (paper.json)

Pictures in the same folders follow the tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reference_pages import Generated, markdown_table
from sphinx.application import Sphinx


class _Saved(Generated):
    """Directive that reads files in the folder of its page."""

    def run(self) -> list[Any]:
        for path in sorted(self._folder.rglob("*.json")):
            self.env.note_dependency(str(path))
        self.env.note_reread()  # a file that does not exist yet cannot be a dependency
        return super().run()

    @property
    def _folder(self) -> Path:
        return Path(self.env.doc2path(self.env.docname)).parent


class Comparisons(_Saved):
    def text(self) -> str:
        folders = [path.parent for path in sorted(self._folder.glob("*/comparison.json"))]
        return "\n\n".join(comparison_text(folder, folder.name) for folder in folders) or "No comparison is saved."


class PaperFigures(_Saved):
    def text(self) -> str:
        path = self._folder / "paper.json"
        return paper_text(path) if path.is_file() else "No figures are saved."


def comparison_text(folder: Path, address: str) -> str:
    """Return tables and pictures of one comparison, as Markdown.

    Args:
        address: path of the folder, relative to the page.
    """
    from orchestrator.bench.comparison import load
    from orchestrator.bench.table import mean_to_bound, means_of, rows_of

    comparison, samples = load(folder)
    rows = rows_of(comparison.cases, samples)
    machine = ", ".join(f"{key} {value}" for key, value in comparison.environment.items() if value not in ("", None))
    parts = [
        f"## {folder.name}",
        f"{comparison.cluster}; images of {comparison.size} x {comparison.size}; {comparison.frames} frames each, in "
        f"turns; {comparison.begun}; {machine}. Joules: {comparison.energy_source}.",
    ]
    for name in dict.fromkeys(row.case.model for row in rows):
        here = [row for row in rows if row.case.model == name]
        bound = here[0].case.bound_seconds
        parts.append(f"**{name}**" + (f", divisible-load bound {bound * 1e3:.1f} ms" if bound else ""))
        parts.append(
            markdown_table(
                ("scheme", "on", "p50 ms", "p95 ms", "predicted ms", "J", "predicted J", "KB", "x bound", "x auto"),
                [
                    (
                        f"`{row.case.scheme}`", ", ".join(row.case.devices),
                        _number(row.median_seconds, 1e3, ".1f"), _number(row.p95_seconds, 1e3, ".1f"),
                        _number(row.case.predicted_seconds, 1e3, ".1f"), _number(row.median_joules, 1, ".3f"),
                        _number(row.case.predicted_joules, 1, ".3f"), _number(row.total_nbytes, 1e-3, ".1f"),
                        _number(row.to_bound, 1, ".2f"), _number(row.to_auto, 1, ".2f"),
                    )
                    for row in here
                ],
            )
        )  # fmt: skip
        remarks = [f"`{row.case.scheme}`: {row.case.problem or row.case.note}" for row in here if _remark(row.case)]
        parts += ["\n".join(f"* {remark}" for remark in remarks)] if remarks else []
    if means := means_of(rows):
        parts.append("Values of each scheme over those of `auto`: geometric means over the networks.")
        parts.append(
            markdown_table(
                ("scheme", "networks", "latency", "joules", "best", "on"),
                [
                    (f"`{mean.scheme}`", str(mean.models), f"{mean.latency:.2f}", _number(mean.joules, 1, ".2f"),
                     f"{mean.best:.2f}", mean.best_model)
                    for mean in means
                ],
            )
        )  # fmt: skip
    if to_bound := mean_to_bound(rows):
        parts.append(f"`auto` over the divisible-load bound, geometric mean: {to_bound:.2f}.")
    return "\n\n".join([*parts, *_pictures(folder.iterdir(), f"{address}/")])


def paper_text(path: Path) -> str:
    """Return a table per figure and link rate, and the pictures, as Markdown."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    parts = [f"{kept['cluster']}; {kept['frames']} frames of each plan." if kept["frames"] else f"{kept['cluster']}."]
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for point in kept["points"]:
        groups.setdefault((point["figure"], point["scale"]), []).append(point)
    for (figure, scale), points in groups.items():
        parts.append(f"**Figure {'10 and 11' if figure == '10' else figure}**, links of {scale:g} MB/s")
        parts.append(
            markdown_table(
                ("", "", "ms: paper", "predicted", "measured", "J: paper", "predicted", "measured"),
                [(point["series"], point["x"], *_figures(point)) for point in points],
            )
        )
    return "\n\n".join([*parts, *_pictures(path.parent.glob("paper-*"), "")])


def _figures(point: Mapping[str, Any]) -> list[str]:
    """Return milliseconds, then joules, from the paper, the prediction and the measurement."""
    sources = [point[source] for source in ("paper", "predicted", "measured")]
    return [_number(value[quantity], 1, ".3g") for quantity in ("ms", "joules") for value in sources]


def _remark(case: Any) -> bool:
    return bool(case.problem or case.note)


def _pictures(files: Iterable[Path], address: str) -> list[str]:
    return [f"![{path.stem}]({address}{path.name})" for path in sorted(files) if path.suffix in (".svg", ".png")]


def _number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("comparisons", Comparisons)
    app.add_directive("paper-figures", PaperFigures)
    return {"parallel_read_safe": True}
