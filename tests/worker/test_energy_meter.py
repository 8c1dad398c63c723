"""Energy meters on a temporary sysfs tree, whose files the test writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.runtime.energy_meter import CounterMeter, PowerMeter, find_meter, measure_power


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n", encoding="ascii")


def zone(root: Path, name: str, label: str, microjoules: int = 0, full: int = 1_000_000) -> Path:
    folder = root / "class/powercap" / name
    for file, value in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", full)):
        write(folder / file, value)
    return folder


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_machine_without_sensors_has_no_meter(tmp_path: Path) -> None:
    assert find_meter(tmp_path) is None


def test_rapl_counts_packages_and_memory_once(tmp_path: Path) -> None:
    zones = [
        zone(tmp_path, "intel-rapl:0", "package-0"),
        zone(tmp_path, "intel-rapl:0:1", "dram"),
        zone(tmp_path, "intel-rapl:0:0", "core"),
        zone(tmp_path, "intel-rapl:1", "psys"),
    ]
    meter = find_meter(tmp_path)
    assert meter is not None and meter.source == "RAPL package-0, dram"
    for counted in zones:
        write(counted / "energy_uj", 250_000)
    assert meter.joules() == 0.5


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", microjoules=900_000, full=1_000_000)
    meter = CounterMeter([package])
    write(package / "energy_uj", 100_000)
    assert meter.joules() == 0.2
    write(package / "energy_uj", 400_000)
    assert meter.joules() == 0.5


@given(st.lists(st.integers(0, 999_999), max_size=20))
def test_joules_never_decrease(tmp_path_factory: pytest.TempPathFactory, steps: list[int]) -> None:
    package = zone(tmp_path_factory.mktemp("sys"), "intel-rapl:0", "package-0")
    meter, counter, joules = CounterMeter([package]), 0, 0.0
    for step in steps:
        counter = (counter + step) % 1_000_000
        write(package / "energy_uj", counter)
        joules += step / 1e6
        assert meter.joules() == pytest.approx(joules)


def test_counters_that_cannot_be_read_are_no_meter(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0")
    (package / "energy_uj").unlink()
    assert find_meter(tmp_path) is None
    write(tmp_path / "class/hwmon/hwmon0/power1_input", 2_500_000)
    meter = find_meter(tmp_path)
    assert meter is not None and meter.source.startswith("hwmon")


def hwmon(root: Path, chip: str, **files: object) -> Path:
    for name, value in files.items():
        write(root / "class/hwmon" / chip / name, value)
    return root / "class/hwmon" / chip


def reading(root: Path) -> tuple[str, float]:
    """Return source and watts of the meter."""
    meter = find_meter(root)
    assert isinstance(meter, PowerMeter)
    return meter.source, meter._watts()


def test_a_power_sensor_is_read_in_microwatts(tmp_path: Path) -> None:
    hwmon(tmp_path, "hwmon0", name="ina219", power1_input=3_250_000)
    assert reading(tmp_path) == ("hwmon ina219 power1", 3.25)


def test_volts_and_amperes_of_one_channel_are_multiplied(tmp_path: Path) -> None:
    hwmon(tmp_path, "hwmon0", name="ina3221", in1_input=5000, in2_input=9999, curr1_input=600)
    assert reading(tmp_path) == ("hwmon ina3221 in1", 3.0)


def test_the_supply_of_the_board_is_preferred_to_its_parts(tmp_path: Path) -> None:
    hwmon(tmp_path, "hwmon0", name="amdgpu", power1_input=1_000_000)
    hwmon(tmp_path, "hwmon1", name="ina3221", in1_input=5000, curr1_input=100, in1_label="VDD_CPU")
    assert reading(tmp_path)[0] == "hwmon ina3221 VDD_CPU"
    hwmon(tmp_path, "hwmon1", in2_input=5000, curr2_input=900, in2_label="VDD_IN")
    assert reading(tmp_path) == ("hwmon ina3221 VDD_IN", 4.5)


def test_a_temperature_sensor_is_no_meter(tmp_path: Path) -> None:
    hwmon(tmp_path, "hwmon0", name="coretemp", temp1_input=45_000, in1_input=1000)
    assert find_meter(tmp_path) is None


def test_power_is_integrated_over_the_time_between_readings() -> None:
    clock, watts = Clock(), [2.0]
    meter = PowerMeter(lambda: watts[0], "a sensor", clock)
    clock.now += 3
    assert meter.joules() == 6.0
    clock.now += 1
    watts[0] = 4.0
    assert meter.joules() == 9.0


def machine(clock: Clock, idle: float, busy: float) -> tuple[PowerMeter, Callable[[], None]]:
    watts = [idle]

    def work() -> None:
        watts[0] = busy
        clock.now += 0.01

    return PowerMeter(lambda: watts[0], "a sensor", clock), work


def test_idle_and_compute_power_are_measured_separately() -> None:
    clock = Clock()
    meter, work = machine(clock, idle=2.0, busy=5.0)
    idle, compute = measure_power(meter, work, 1.0, clock, clock.sleep)
    assert idle == pytest.approx(2.0)
    assert compute == pytest.approx(3.0, rel=0.01)  # the first piece of work begins at idle power


def test_compute_power_is_never_negative() -> None:
    clock = Clock()
    meter, work = machine(clock, idle=2.0, busy=1.9)
    assert measure_power(meter, work, 1.0, clock, clock.sleep)[1] == 0.0
