"""Tables of devices: as measured, and as used in a timeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from coedge.core.units import mbps_of
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline


def devices_table(infos: Iterable[Any], providers: Mapping[str, Sequence[str]] | None = None) -> Table:
    """Return a table with a row per device: state, speed, links to the others and, if given, execution providers."""
    infos = list(infos)
    table = Table(title="devices, as measured (links: Mbit/s, one-way ms)", title_justify="left", header_style="bold")
    table.add_column("device")
    table.add_column("state")
    table.add_column("speed", justify="right")
    table.add_column("GFLOP/s", justify="right")
    if providers:
        table.add_column("runs on")
    for info in infos:
        table.add_column(f"to {info.name}", justify="right")
    for info in infos:
        speed = "real" if info.speed is None else f"x {info.speed:g}"
        runs_on = [", ".join(providers[info.name])] if providers else []
        links = [_link(info.links.get(other.name)) for other in infos]
        table.add_row(info.name, info.state, speed, f"{info.gflops:.1f}", *runs_on, *links)
    return table


def _link(link: Any) -> str:
    return "-" if link is None else f"{mbps_of(link.bytes_per_second):.0f}, {link.latency_seconds * 1e3:.1f}"


def timeline_table(timeline: Timeline, profile: Profile, names: Sequence[str]) -> Table:
    """Return a table with a row per device: busy and idle time, use of its links, and joules by cause."""
    used, idle, busy_seconds = timeline.utilisation(profile), timeline.idle_seconds(), timeline.compute_seconds()
    items = timeline.energy(profile)
    causes = [cause for cause in ("compute", "transmit", "receive", "idle") if any(i.cause == cause for i in items)]
    table = Table(
        title="all frames together; joules are modelled", title_justify="left", header_style="bold",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    within = f" {profile.estimate_error.brief}" if profile.estimate_error else ""
    headers = ("device", f"compute\nms{within}", f"idle\nms{within}", "busy", "up-\nlink", "down-\nlink")
    for column in (*headers, *(f"{cause}\nJ{within}" for cause in causes)):
        table.add_column(column, justify="left" if column == "device" else "right", no_wrap=True)
    for name in names:
        joules = [sum(i.joules for i in items if i.device == name and i.cause == cause) for cause in causes]
        table.add_row(
            name, f"{busy_seconds.get(name, 0.0) * 1e3:.4g}", f"{idle.get(name, 0.0) * 1e3:.4g}",
            f"{used.devices.get(name, 0.0):.0%}", f"{used.up_links.get(name, 0.0):.0%}",
            f"{used.down_links.get(name, 0.0):.0%}", *(f"{value:.3f}" for value in joules),
        )  # fmt: skip
    for name, share in used.media.items():
        table.add_row(f"({name})", "", "", f"{share:.0%}")
    return table
