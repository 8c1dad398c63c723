"""The figures of the CoEdge paper: the trials that reproduce them, and the claims that are checked."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import examples
from test_algorithm_1 import chain, synthetic_profile

from benchmarks.paper import BED, make
from benchmarks.paper_cluster import check_devices, emulated, set_rates, speeds
from benchmarks.paper_plots import draw
from benchmarks.paper_points import Figures, Point, Value, claims_of, median_value, orderings
from benchmarks.paper_trials import NETWORKS, PAPERS, trials, with_rates
from coedge.config.loading import load_config
from coedge.core.errors import ClusterError
from coedge.profile.testbed import load_testbed
from orchestrator.cluster.cluster import Cluster
from orchestrator.planner.planner import make_plan


def points_of_paper(predicted: float = 1.0) -> list[Point]:
    """Return the points of the figures with the paper's values, times a factor, as predictions."""

    def times(value: float | None) -> float | None:
        return None if value is None else value * predicted

    return [
        Point(
            trial.figure, 1.0, trial.series, trial.x, trial.network, trial.deadline_ms,
            Value(trial.paper_ms, trial.paper_joules), Value(times(trial.paper_ms), times(trial.paper_joules)),
        )
        for trial in trials(1.0)
    ]  # fmt: skip


def test_every_value_of_the_paper_is_in_a_trial() -> None:
    found = trials(1.0)
    assert {trial.figure for trial in found} == {"10", "12", "13", "14", "3"}
    ms = sorted(trial.paper_ms for trial in found if trial.paper_ms is not None)
    joules = sorted(trial.paper_joules for trial in found if trial.paper_joules is not None)
    ten, eleven = (PAPERS[f"figure_{key}"] for key in ("10_ms", "11_joules"))
    assert ms == sorted(
        [v for by in ten.values() for v in by.values()] + PAPERS["figure_13_ms"] + PAPERS["figure_14_ms"]
    )
    assert joules == sorted(
        [v for by in eleven.values() for v in by.values()] + PAPERS["figure_13_joules"]
        + [*PAPERS["figure_12_joules"].values(), *PAPERS["figure_3_joules"].values()]
    )  # fmt: skip
    assert [trial.moment for trial in found if trial.figure == "14" and trial.series == "coedge"] == [1, 2, 3, 4, 5, 6]


def test_the_values_of_the_paper_reproduce_its_claims() -> None:
    """With the paper's values as predictions, every claim that they cover is reproduced."""
    claims = claims_of(points_of_paper())
    assert {claim.figure for claim in claims} == {"10", "11", "12", "13", "14", "3"}
    told = [claim for claim in claims if claim.paper is not None and claim.predicted is not None]
    assert len(told) >= 11
    assert all(claim.predicted == claim.paper and claim.reproduced for claim in told)
    # In the paper, MoDNN is faster than CoEdge in two cases.
    assert {claim.what for claim in told if not claim.paper} == {"CoEdge is faster than MoDNN on every network"}
    assert all(claim.measured is None for claim in claims)


def test_claims_that_are_not_reproduced_are_listed_with_the_reason() -> None:
    slower = [
        point if point.series != "coedge" or point.figure != "10" else
        Point(**{**vars(point), "predicted": Value(1e4, 1e2)})
        for point in points_of_paper()
    ]  # fmt: skip
    lost = {claim.what: claim for claim in claims_of(slower) if not claim.reproduced}
    assert {claim.figure for claim in lost.values()} == {"10", "11"}
    assert "1 MB/s" in lost["CoEdge meets the deadlines"].why


@given(st.permutations(["local", "modnn", "musical_chair", "coedge"]))
@examples(24)
def test_pairs_of_schemes_in_the_order_of_the_paper_are_counted(order: list[str]) -> None:
    alexnet = PAPERS["figure_10_ms"]["alexnet"]
    points = [
        Point("10", 1.0, series, "alexnet", "alexnet", None, Value(alexnet[series]), Value(float(place)))
        for place, series in enumerate(order)
    ]
    same, count, other = orderings(points, "ms", "predicted")
    assert count == 6 and same + len(other) == 6
    inversions = sum(alexnet[a] > alexnet[b] for i, a in enumerate(order) for b in order[i + 1 :])
    assert len(other) == inversions
    assert orderings(points, "ms", "measured") == (0, 0, [])


def test_figures_come_back_from_disk_and_can_be_drawn(tmp_path: Path) -> None:
    points = points_of_paper(1.1)
    points[0] = Point(**{**vars(points[0]), "measured": median_value([3.0, 1.0, 2.0], [0.5], "late")})
    assert points[0].measured == Value(2.0, 0.5, "late", (3.0, 1.0, 2.0))
    figures = Figures({"cores": 2}, "here", 3, points)
    figures.save(tmp_path / "paper.json")
    assert Figures.load(tmp_path / "paper.json") == figures
    names = {path.name for path in draw(figures, tmp_path)}
    assert names == {f"paper-{figure}-1MBps.svg" for figure in ("10", "12", "13", "14", "3")}
    assert all((tmp_path / name).stat().st_size > 1000 for name in names)


@given(st.floats(0.1, 20.0))
@examples(10)
def test_rates_scale_bandwidth_only(factor: float) -> None:
    profile = synthetic_profile(chain(), {"a": 1.0, "b": 0.5}, 1e7)
    faster = with_rates(profile, factor)
    assert faster.devices == profile.devices
    for link in profile.links:
        other = faster.link(link.sender, link.receiver)
        assert other.bytes_per_second == pytest.approx(link.bytes_per_second * factor)
        assert other.latency_seconds == link.latency_seconds
    plans = [make_plan(chain(), p, scheme="modnn").predicted for p in (profile, faster)]
    assert plans[0] and plans[1]
    assert (plans[1].latency_seconds <= plans[0].latency_seconds * (1 + 1e-9)) == (factor >= 1)


def test_a_link_that_is_not_emulated_is_refused() -> None:
    bed = load_testbed(BED, ["devices.pi-1.name=nobody-here", "source=nobody-here"])
    given = emulated(bed, "alexnet")
    given["devices"][0]["link"] = {}
    with pytest.raises(ClusterError, match="the link of nobody-here is not emulated"):
        set_rates(cast(Cluster, None), load_config(given), bed, 1.0)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_emulated_test_bed_has_its_devices_and_fits_two_cores(network: str) -> None:
    bed = load_testbed(BED)
    config = load_config(emulated(bed, network))
    check_devices(config, bed)
    assert [device.name for device in config.devices] == [device.name for device in bed.devices]
    assert sum(device.speed or 0.0 for device in config.devices) <= 2.0
    assert {device.link.mbps for device in config.devices} == {8.0}
    assert load_config(config, speeds(config, bed, network)) == config
    slower = load_config(config, [f"devices.{device.name}.speed=0.05" for device in bed.devices])
    assert load_config(slower, speeds(slower, bed, network)) == config
    real = load_config(config, ["devices.pc.speed=null"])
    assert load_config(real, speeds(real, bed, network)).devices[5].speed is None
    with pytest.raises(ClusterError, match="tx2"):
        check_devices(config.model_copy(update={"devices": config.devices[:4]}), bed)


def test_predicted_figures_of_one_network() -> None:
    figures = make(quick=True, predicted_only=True)
    assert {point.network for point in figures.points} == {"alexnet"}
    assert all(point.predicted.ms and point.predicted.joules and point.devices for point in figures.points)
    told = {(claim.figure, claim.what): claim.predicted for claim in claims_of(figures.points)}
    assert told["10", "CoEdge is faster than Local on every network"]
    assert told["10", "CoEdge meets the deadlines"]
    assert told["14", "MoDNN misses the deadline at 500 KB/s"]
    assert told["12", "no plan meets the shortest deadline"]
