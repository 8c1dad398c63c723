"""What the facts of a processor mean: its clock, its heat and its load."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from orchestrator.doctor.facts import Processor
from orchestrator.doctor.finding import Finding

PERFORMANCE = "sudo cpupower frequency-set -g performance"
# Drivers whose governor "powersave" follows the load. Elsewhere it means the lowest clock, always.
ADAPTIVE_DRIVERS = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
# Bits of `vcgencmd get_throttled`: now, and the same 16 bits higher: at any time since the start.
BOARD_FLAGS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
SUPPLY = "use the supply of the board (5 V, 3 A or more) with a short cable"
COOLING = "give it a heat sink or a fan"
RED_LOAD, HIGH_LOAD = 1.5, 0.6


def processor_findings(make: Callable[..., Finding], processor: Processor) -> Iterator[Finding]:
    """Yield a finding for the clock, for each sign of throttling, and for the load."""
    yield _governor(make, processor)
    yield from _throttling(make, processor)
    yield _load(make, processor)


def _governor(make: Callable[..., Finding], processor: Processor) -> Finding:
    if not processor.governors:
        return make("cpu", "ok", f"{processor.cores} cores; the system shows no CPU frequency")
    text = f"{processor.cores} cores, governor {', '.join(processor.governors)}"
    most, allowed = processor.most_mhz, processor.allowed_mhz
    if "powersave" in processor.governors and processor.driver not in ADAPTIVE_DRIVERS:
        return make("cpu", "red", f"{text}: the cores stay at their lowest clock", PERFORMANCE)
    if most and allowed and allowed < 0.95 * most:
        text = f"{text}; the clock is limited to {allowed:.0f} of {most:.0f} MHz"
        return make("cpu", "warning", text, f"sudo cpupower frequency-set -u {most:.0f}MHz")
    if set(processor.governors) != {"performance"}:
        return make("cpu", "warning", f"{text}: short kernels run before the clock has risen", PERFORMANCE)
    return make("cpu", "ok", text)


def _throttling(make: Callable[..., Finding], processor: Processor) -> Iterator[Finding]:
    flags = processor.board_flags or 0
    now = [name for bit, name in BOARD_FLAGS.items() if flags >> bit & 1]
    earlier = [name for bit, name in BOARD_FLAGS.items() if flags >> (16 + bit) & 1 and name not in now]
    for names, level, when in ((now, "red", "now"), (earlier, "warning", "since the start")):
        if names:
            mend = SUPPLY if "under-voltage" in names else COOLING
            yield make("cpu", level, f"{', '.join(names)} {when} (vcgencmd get_throttled)", mend)
    if processor.throttles:
        text = f"heat has slowed the cores {processor.throttles} times since the start"
        yield make("cpu", "warning", text, COOLING)


def _load(make: Callable[..., Finding], processor: Processor) -> Finding:
    text = f"load {processor.load:.1f} on {processor.cores} cores"
    share = processor.load / max(processor.cores, 1)
    if share <= HIGH_LOAD:
        return make("load", "ok", text)
    return make(
        "load",
        "red" if share > RED_LOAD else "warning",
        f"{text}: other programs run",
        "top   (and end what uses the cores)",
    )
