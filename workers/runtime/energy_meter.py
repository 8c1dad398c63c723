"""Energy meters: the joules that a device has drawn, and its power.

    RAPL     class/powercap/intel-rapl:0/energy_uj           a counter in the processor, of packages and memory
    hwmon    class/hwmon/hwmon0/power1_input                 a sensor on the board (INA219, INA3221, ...): watts,
             class/hwmon/hwmon0/in1_input x curr1_input      or volts and amperes; summed up over time

Both count the whole machine with all of its processes. Without either, energy is modelled from configured watts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

SYSFS = Path("/sys")
IDLE_STEP_SECONDS = 0.02
# Labels of the supply of a whole board. Other channels are parts of it.
WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VDD_TOTAL")


class EnergyMeter(Protocol):
    """A meter of a machine's energy.

    Attributes:
        source: name of the sensor, shown beside every measured energy.
    """

    source: str

    def joules(self) -> float:
        """Return the joules drawn since the meter was made. A meter that samples must be read often."""


class CounterMeter:
    """A meter that adds up counters of microjoules, which wrap around to zero (RAPL).

    Args:
        zones: folders with `energy_uj`, `max_energy_range_uj` and `name`.

    Raises:
        OSError, ValueError: a counter cannot be read.
    """

    def __init__(self, zones: list[Path]) -> None:
        self.source = "RAPL " + ", ".join(_text(zone / "name") for zone in zones)
        self._counters = [zone / "energy_uj" for zone in zones]
        self._ranges = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(counter) for counter in self._counters]
        self._microjoules = 0.0

    def joules(self) -> float:
        for index, counter in enumerate(self._counters):
            now = _number(counter)
            passed = now - self._last[index]
            self._microjoules += passed if passed >= 0 else passed + self._ranges[index]
            self._last[index] = now
        return self._microjoules / 1e6


class PowerMeter:
    """A meter that integrates the readings of a power sensor over time.

    Args:
        watts: reads the sensor.
        clock: seconds, monotonic.
    """

    def __init__(self, watts: Callable[[], float], source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._watts, self._clock = watts, clock
        self._last = (clock(), watts())
        self._joules = 0.0

    def joules(self) -> float:
        then, before = self._last
        now, watts = self._clock(), self._watts()
        self._joules += (before + watts) / 2 * (now - then)
        self._last = (now, watts)
        return self._joules


def find_meter(root: Path = SYSFS) -> EnergyMeter | None:
    """Return the best meter of this machine that can be read; None: there is none.

    Args:
        root: where sysfs is mounted.
    """
    zones = [
        zone
        for zone in sorted((root / "class/powercap").glob("intel-rapl:*"))
        # `psys` includes the packages, `core` and `uncore` are parts of a package.
        if _text(zone / "name").startswith("package") or _text(zone / "name") == "dram"
    ]
    if zones:
        try:
            return CounterMeter(zones)
        except (OSError, ValueError):  # only the superuser may read the counters
            pass
    sensors = sorted(
        (sensor for chip in sorted((root / "class/hwmon").glob("hwmon*")) for sensor in _sensors(chip)),
        key=lambda sensor: sensor[0],
    )
    for _, source, watts in sensors:
        try:
            return PowerMeter(watts, source)
        except (OSError, ValueError):
            continue
    return None


def measure_power(
    meter: EnergyMeter,
    work: Callable[[], object],
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[float, float]:
    """Return (watts of the idle machine, watts above that while it works), each measured for `seconds`.

    Args:
        work: a piece of a kernel's work that takes much less than `seconds`.
    """
    idle = _mean_watts(meter, lambda: sleep(IDLE_STEP_SECONDS), seconds, clock)
    busy = _mean_watts(meter, work, seconds, clock)
    return idle, max(busy - idle, 0.0)


def _mean_watts(meter: EnergyMeter, act: Callable[[], object], seconds: float, clock: Callable[[], float]) -> float:
    before, start = meter.joules(), clock()
    while (passed := clock() - start) < seconds:
        act()
        meter.joules()
    return (meter.joules() - before) / passed


Sensor = tuple[tuple[int, str], str, Callable[[], float]]


def _sensors(chip: Path) -> list[Sensor]:
    """Return (rank, source, reader) of each channel with power. The lowest rank covers most of the board."""
    sensors = []
    for power in chip.glob("power*_input"):
        channel = power.name.removeprefix("power").removesuffix("_input")
        sensors.append(_sensor(chip, f"power{channel}", channel, partial(_watts, power)))
    for current in chip.glob("curr*_input"):
        channel = current.name.removeprefix("curr").removesuffix("_input")
        volts = chip / f"in{channel}_input"
        if volts.exists() and not (chip / f"power{channel}_input").exists():
            sensors.append(_sensor(chip, f"in{channel}", channel, partial(_watts_of, volts, current)))
    return sensors


def _sensor(chip: Path, file: str, channel: str, watts: Callable[[], float]) -> Sensor:
    name = _text(chip / "name") or chip.name
    label = _text(chip / f"{file}_label") or _text(chip / f"in{channel}_label")
    rank = 0 if label in WHOLE_BOARD else 1 if name.startswith("ina") else 2
    return (rank, f"{chip.name}/{file}"), f"hwmon {name} {label or file}", watts


def _watts(power: Path) -> float:
    return _number(power) / 1e6  # microwatts


def _watts_of(volts: Path, current: Path) -> float:
    return _number(volts) * _number(current) / 1e6  # millivolts, milliamperes


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> float:
    return float(path.read_text("ascii"))
