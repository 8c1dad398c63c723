"""Tables of a lab."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from orchestrator.lab.state import HostState, MediumState


def lab_table(hosts: Iterable[HostState]) -> Table:
    """Return a table with a row per host: what runs there, its rates, and the bytes it sent and received."""
    from orchestrator.lab.rates import show_rate

    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for title in ("device", "address", "Ray", "medium"):
        table.add_column(title, no_wrap=True)
    for title in ("up", "down", "sent MB", "received MB"):
        table.add_column(title, justify="right", no_wrap=True)
    for host in hosts:
        table.add_row(
            escape(host.name),
            host.address or "-",
            _ray_state(host),
            escape(host.medium or "-"),
            show_rate(host.up_bytes_per_second),
            show_rate(host.down_bytes_per_second),
            f"{host.sent.nbytes / 1e6:.2f}",
            f"{host.received.nbytes / 1e6:.2f}",
        )
    return table


def medium_line(medium: MediumState) -> str:
    """Describe a shared medium: its devices, its rate, and what it carried."""
    from orchestrator.lab.rates import show_rate

    return (
        f"medium {medium.name} ({', '.join(medium.devices)}): {show_rate(medium.bytes_per_second)}, "
        f"{medium.carried.nbytes / 1e6:.2f} MB carried, {medium.dropped} frames dropped"
    )


def _ray_state(host: HostState) -> str:
    return "head" if host.head and host.node else "node" if host.node else "ended"
