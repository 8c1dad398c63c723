"""The table of an examination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from orchestrator.doctor.finding import Finding

STYLES = {"ok": "green", "warning": "yellow", "red": "bold red"}


def doctor_table(findings: Sequence[Finding]) -> Table:
    """Return a table with a row per finding. What mends it is a line of its own, to be copied."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("check", "where", ""):
        table.add_column(title, no_wrap=True)
    table.add_column("found", overflow="fold")
    for finding in findings:
        text = escape(finding.text)
        if finding.mend:
            text += f"\n[bold]{escape(f'-> {finding.mend}')}[/bold]"
        level = f"[{STYLES[finding.level]}]{finding.level}[/{STYLES[finding.level]}]"
        table.add_row(finding.check, escape(finding.where), level, text)
    return table


def summary(findings: Sequence[Finding]) -> str:
    """Return the number of findings of each level."""
    counts = {level: sum(finding.level == level for finding in findings) for level in STYLES}
    return f"{counts['red']} red, {counts['warning']} warnings, {counts['ok']} ok"
