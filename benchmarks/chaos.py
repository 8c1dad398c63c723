"""Chaos: streams of frames, while devices die, stop for a moment and have slow links.

Two streams ask for frames of small networks of the zoo on one cluster of emulated devices. Each answer is compared with
the unsplit network's. Meanwhile the devices are harmed by a seeded schedule; see `benchmarks.chaos_faults`. Counted are
the frames that are lost, doubled, out of order, wrong or without an end, and the time from each fault of a device in
use to the next answer of the streams that used it.

`python -m benchmarks.chaos [--frames 10000] [--faults 500] [--seed 0] [--devices 4] [--json] [--quick] [--save FILE]`,
about half an hour (one minute). It goes on until it has done all faults and has asked for all frames. Ctrl-C ends it
early, with the figures so far.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

import coedge
from benchmarks.chaos_faults import Harm, schedule
from benchmarks.chaos_figures import enter, held_up
from benchmarks.chaos_streams import WAYS, Network, Stream, Tally
from benchmarks.report import Report, environment, parser
from coedge.core.progress import progress
from orchestrator.cluster.cluster import Cluster

# (name, image size, width)
NETWORKS = (("squeezenet", 64, 0.25), ("resnet18", 48, 0.25), ("mobilenet_v1", 64, 0.25))
SPEEDS = (0.3, 0.25, 0.2, 0.15)
MBPS, LATENCY_MS = 300.0, 0.2
PAUSE_SECONDS = 1.0
# A frame ends within its timeout and this time, or is counted as one without an end.
GRACE_SECONDS = 15.0
LOOK_SECONDS = 0.2
# Faults so long before a false alarm are told with it.
NEAR_SECONDS = 10.0


def main() -> None:
    made = parser(__doc__, frames=10_000, faults=500, seed=0, devices=4)
    made.add_argument("--save", type=Path, help="write the figures as Markdown to this file, and as JSON beside it")
    options = made.parse_args()
    frames, faults = (100, 8) if options.quick else (options.frames, options.faults)
    report = Report("chaos")
    networks = made_networks(NETWORKS[:2] if options.quick else NETWORKS, options.seed)
    loads = [psutil.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as cache, coedge.connect(config_of(options.devices, cache)) as cluster:
        outcome = run(cluster, networks, frames, faults, options.seed)
    loads.append(psutil.getloadavg()[0])
    enter(report, outcome.tally, outcome.harm, outcome.hung, cluster.config.detect_seconds)
    report.note("time", outcome.seconds, "s")
    for label, load in zip(("before", "at the end"), loads, strict=True):
        report.note(f"load of the machine {label}", load, "processes")
    _tell(outcome)
    if options.save:
        save(options.save, report)
    report.finish(options.json)


def config_of(devices: int, cache: str) -> dict[str, Any]:
    """Return the configuration of a cluster of emulated devices."""
    return {
        "devices": [
            {
                "name": f"d{index}",
                "speed": SPEEDS[index % len(SPEEDS)],
                "link": {"mbps": MBPS, "latency_ms": LATENCY_MS},
            }
            for index in range(devices)
        ],
        "source": "d0",
        "cache_dir": cache,
        "profile_budget_seconds": 2.0,
        "trial_frames": 0,
    }


def made_networks(wanted: Sequence[tuple[str, int, float]], seed: int) -> list[Network]:
    return [Network.of(name, size, width, seed) for name, size, width in wanted]


class Outcome:
    """A run: its frames and faults.

    Attributes:
        hung: number of streams that did not go on.
    """

    def __init__(self, tally: Tally, harm: Harm) -> None:
        self.tally, self.harm = tally, harm
        self.hung, self.seconds = 0, 0.0


def run(
    cluster: Cluster,
    networks: Sequence[Network],
    frames: int,
    faults: int,
    seed: int,
    pause_seconds: float = PAUSE_SECONDS,
) -> Outcome:
    """Run streams and faults on a cluster until both numbers are reached. Leaves no thread and no stopped process.

    Raises:
        RuntimeError: the faults could not be done.
    """
    for network in networks:  # measured and planned before anything is harmed
        cluster.submit(network.model, network.inputs[0]).result()
    begun, tally = time.monotonic(), Tally()
    streams = [Stream(k, cluster, networks, ways, seed + k, tally) for k, ways in enumerate(WAYS)]
    harm = Harm(cluster, schedule(faults, seed, pause_seconds), seed)
    outcome = Outcome(tally, harm)
    try:
        with progress("faults", faults) as step:
            for _ in _new(harm, streams, cluster, outcome, frames):
                step()
        if harm.failure is not None:
            raise RuntimeError("the faults could not be done") from harm.failure
    except KeyboardInterrupt:
        print("ended early", file=sys.stderr)
    finally:
        harm.stop()
        for stream in streams:
            stream.stop()
        limit = cluster.config.frame_timeout_seconds + GRACE_SECONDS
        if not outcome.hung and sys.exc_info()[0] is None:
            outcome.hung += sum(not stream.join(limit) for stream in streams)
        outcome.seconds = time.monotonic() - begun
    return outcome


def _new(harm: Harm, streams: Sequence[Stream], cluster: Cluster, outcome: Outcome, frames: int) -> Iterator[None]:
    """Yield once for each new fault, until everything is done or a stream hangs."""
    seen, limit = 0, cluster.config.frame_timeout_seconds + GRACE_SECONDS
    while not (harm.done.is_set() and outcome.tally.counts["asked"] >= frames):
        for _ in harm.faults[seen:]:
            seen += 1
            yield
        now = time.monotonic()
        outcome.hung = sum(not stream.alive or now - stream.since > limit for stream in streams)
        if outcome.hung:
            faulthandler.dump_traceback(sys.stderr, all_threads=True)
            return
        if harm.failure is not None:
            return
        time.sleep(LOOK_SECONDS)


def _tell(outcome: Outcome) -> None:
    """Print what went wrong, and the faults that held frames up the longest."""
    for reason, count in outcome.tally.lost.most_common():
        print(f"lost {count}: {reason}", file=sys.stderr)
    for problem in dict.fromkeys(outcome.harm.problems):
        print(f"link: {problem}", file=sys.stderr)
    for at, reason in outcome.harm.false_alarms:
        print(f"false alarm at {at:.2f}: {reason}. Faults before:", file=sys.stderr)
        for fault in outcome.harm.faults:
            if at - fault.over < NEAR_SECONDS and fault.at < at:
                print(f"    {fault}", file=sys.stderr)
    for fault in outcome.harm.missing:
        print(f"not back: {fault}", file=sys.stderr)
    slow = sorted(held_up(outcome.harm.faults, outcome.tally.frames), key=lambda one: -one.next_seconds)[:12]
    for one in slow:
        fault, frame = one.fault, one.frame
        print(
            f"slow: {one.next_seconds:.2f} s after {fault.kind} of {fault.device} at {fault.at:.2f} for "
            f"{fault.seconds:.2f} s, reported after {(fault.noticed or math.nan) - fault.at:.2f} s: {frame.way}, asked "
            f"after {frame.asked - fault.at:.2f} s, sent {frame.attempts} times",
            file=sys.stderr,
        )


def save(path: Path, report: Report) -> None:
    """Write the rows as Markdown, and rows and samples as JSON."""
    lines = ["| what | value | unit | target | holds |", "|---|---|---|---|---|"]
    for row in report.rows:
        holds = "" if row.holds is None else "yes" if row.holds else "no"
        lines.append(f"| {row.what} | {row.value:.4g} | {row.unit} | {row.target} | {holds} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kept = {"environment": environment(), "rows": [asdict(row) for row in report.rows], "samples": report.samples}
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
