"""Tests of the comparison of schemes: fair turns, rows from samples, saved folders, and the command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, small_network
from hypothesis import given
from hypothesis import strategies as st
from nets import examples
from test_algorithm_1 import chain, synthetic_profile

from coedge.core.errors import CoEdgeError, StepFailed
from coedge.execution.program import Work
from coedge.plan.plan import Plan
from coedge.profile.profile import Profile
from coedge.simulation.timeline import Timeline
from orchestrator.bench.comparison import Case, Comparison, Sample, load, save
from orchestrator.bench.contenders import best_single, single_device_run
from orchestrator.bench.table import LOSS, losses_of, mean_to_bound, means_of, rows_of
from orchestrator.bench.turns import COUNTED, FrameRun, take_turns
from workers.calibration.unsplit import UnsplitSession


class Runner:
    """A contender that logs its frames, and fails or returns a wrong output from a given frame on."""

    def __init__(self, name: str, log: list[tuple[str, bool]], fails_at: int = 10**6, wrong_at: int = 10**6) -> None:
        self.name, self.log, self.fails_at, self.wrong_at, self.count = name, log, fails_at, wrong_at, 0

    def run(self) -> float:
        return self._answer(False)

    def measure(self) -> FrameRun:
        return FrameRun(float(self.count), self._answer(True))

    def _answer(self, counts: bool) -> float:
        self.log.append((self.name, counts))
        self.count += 1
        if self.count > self.fails_at:
            raise StepFailed(f"{self.name} broke")
        return 1.0 if self.count > self.wrong_at else 0.0


@given(st.integers(1, 20), st.integers(1, 4))
@examples(30)
def test_turns_are_fair(frames: int, count: int) -> None:
    log: list[tuple[str, bool]] = []
    steps: list[None] = []
    names = [f"c{index}" for index in range(count)]
    found = take_turns(
        {name: Runner(name, log) for name in names}, frames, float, 0.1, lambda: steps.append(None)
    )  # fmt: skip
    assert all(len(found[name].runs) == frames and not found[name].problem for name in names)
    assert len(steps) == frames * count
    # No contender is more than one turn ahead, and every turn starts with a frame that does not count.
    done = dict.fromkeys(names, 0)
    for index, (name, counts) in enumerate(log):
        assert counts or index == 0 or log[index - 1][0] != name or count == 1
        done[name] += counts
        assert max(done.values()) - min(done.values()) <= COUNTED
    warm = sum(not counts for _, counts in log)
    assert warm == count * math.ceil(frames / COUNTED)


@given(st.integers(0, 8), st.booleans())
@examples(15)
def test_a_contender_that_fails_or_is_wrong_stops_and_the_others_go_on(after: int, breaks: bool) -> None:
    log: list[tuple[str, bool]] = []
    bad = Runner("bad", log, **{"fails_at" if breaks else "wrong_at": after})
    steps: list[None] = []
    found = take_turns({"bad": bad, "good": Runner("good", log)}, 9, float, 0.1, lambda: steps.append(None))
    assert len(found["good"].runs) == 9 and not found["good"].problem
    assert ("bad broke" if breaks else "differs from the unsplit one by 1.0e+00") in found["bad"].problem
    assert len(found["bad"].runs) < 9 and all(ran.difference == 0 for ran in found["bad"].runs)
    assert len(steps) == 18, "the progress bar is completed"


def test_without_a_tolerance_differences_are_only_recorded() -> None:
    found = take_turns({"lossy": Runner("lossy", [], wrong_at=0)}, 3, float, None)
    assert [run.difference for run in found["lossy"].runs] == [1.0] * 3


def test_a_difference_that_is_nan_fails() -> None:
    found = take_turns({"nan": Runner("nan", [])}, 3, lambda output: math.nan, 0.1)
    assert "nan" in found["nan"].problem and not found["nan"].runs


def test_the_timeline_is_that_of_the_median_frame() -> None:
    class Traced(Runner):
        def measure(self) -> FrameRun:
            seconds = float([5, 1, 3][self.count % 3])
            return FrameRun(seconds, self._answer(True), timeline=Timeline((), {0: (0.0, seconds)}, True))

    timeline = take_turns({"t": Traced("t", [])}, 3, float, 0.1)["t"].timeline
    assert timeline is not None and timeline.latency_seconds == 3.0


SCHEMES = ("local", "modnn", "auto")
positive = st.floats(1e-4, 10.0)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[list[Case], list[Sample]]:
    cases, samples = [], []
    for model in draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True)):
        for scheme in SCHEMES:
            problem = draw(st.sampled_from(["", "", "", "infeasible: no room"]))
            cases.append(
                Case(
                    model=model, scheme=scheme, devices=("x",), predicted_seconds=draw(positive),
                    bound_seconds=draw(positive), problem=problem,
                )
            )  # fmt: skip
            for frame in range(0 if problem else draw(st.integers(1, 4))):
                sent = draw(st.none() | st.dictionaries(st.sampled_from(["x>y", "y>x"]), st.integers(0, 10**7)))
                joules = None if sent is None else draw(positive)
                samples.append(Sample(model, scheme, frame, draw(positive), joules, draw(st.floats(0, 1e-5)), sent))
    return cases, samples


@given(comparisons())
@examples(60)
def test_rows_follow_from_samples(drawn: tuple[list[Case], list[Sample]]) -> None:
    cases, samples = drawn
    rows = rows_of(cases, samples)
    assert [row.case for row in rows] == cases
    medians = {(row.case.model, row.case.scheme): row.median_seconds for row in rows}
    for row in rows:
        own = [s for s in samples if (s.model, s.scheme) == (row.case.model, row.case.scheme)]
        assert row.frames == len(own) and bool(own) == (not row.case.problem)
        if not own:
            assert row.median_seconds is None and row.to_auto is None and row.error is None
            continue
        seconds = sorted(s.seconds for s in own)
        assert row.median_seconds is not None and row.p95_seconds is not None and row.error is not None
        assert seconds[0] <= row.median_seconds <= row.p95_seconds * (1 + 1e-12) <= seconds[-1] * (1 + 1e-9)
        assert row.case.predicted_seconds == pytest.approx(row.median_seconds * (1 + row.error))
        auto = medians[row.case.model, "auto"]
        assert row.to_auto == (None if auto is None else pytest.approx(row.median_seconds / auto))
        known = [s.sent_nbytes for s in own if s.sent_nbytes is not None]
        assert (row.total_nbytes is None) == (not known)
        if known:
            assert row.total_nbytes == pytest.approx(sum(sum(one.values()) for one in known) / len(known))


@given(comparisons())
@examples(60)
def test_means_are_geometric_means_of_the_ratios(drawn: tuple[list[Case], list[Sample]]) -> None:
    rows = rows_of(*drawn)
    means = {mean.scheme: mean for mean in means_of(rows)}
    assert "auto" not in means
    for scheme in ("local", "modnn"):
        ratios = [row.to_auto for row in rows if row.case.scheme == scheme and row.to_auto is not None]
        assert (scheme in means) == bool(ratios)
        if ratios:
            mean = means[scheme]
            assert mean.models == len(ratios) and mean.best == min(ratios)
            assert math.log(mean.latency) == pytest.approx(sum(map(math.log, ratios)) / len(ratios), abs=1e-9)
    lost = losses_of(rows)
    assert all(row in lost for row in rows if row.to_auto is not None and row.to_auto < 1 / (1 + LOSS) - 1e-9)
    assert all(row.to_auto is not None and row.to_auto < 1 and row.case.scheme != "auto" for row in lost)
    bounded = mean_to_bound(rows)
    assert (bounded is None) == all(row.median_seconds is None for row in rows if row.case.scheme == "auto")


def test_schemes_with_the_same_plan_share_its_frames() -> None:
    cases = [Case(model="a", scheme="local"), Case(model="a", scheme="auto", same_as="local")]
    first, second = rows_of(cases, [Sample("a", "local", 0, 0.5, 1.0, 0.0, {})])
    assert second.median_seconds == first.median_seconds == 0.5 and second.frames == 1
    assert first.to_auto == second.to_auto == 1.0


def test_a_single_device_with_the_input_counts_in_means_but_not_as_a_loss() -> None:
    """It uses no link, so it is not a fair comparison with `auto`."""
    cases = [Case(model="a", scheme="auto"), Case(model="a", scheme="onnxruntime", alone=True)]
    samples = [Sample("a", "auto", 0, 0.5, 1.0, 0.0, {}), Sample("a", "onnxruntime", 0, 0.1, 1.0, 0.0, {})]
    rows = rows_of(cases, samples)
    assert losses_of(rows) == [] and [mean.scheme for mean in means_of(rows)] == ["onnxruntime"]


def test_without_auto_there_are_no_ratios() -> None:
    rows = rows_of([Case(model="a", scheme="local")], [Sample("a", "local", 0, 0.5, None, 0.0, None)])
    assert rows[0].to_auto is None and means_of(rows) == [] and mean_to_bound(rows) is None


def comparison_of(cases: list[Case]) -> Comparison:
    return Comparison(
        cluster="two.yaml", config={}, environment={}, begun="", frames=4, size=48, cases=tuple(cases),
    )  # fmt: skip


@given(drawn=comparisons())
@examples(20)
def test_a_saved_comparison_is_loaded_again(tmp_path_factory: pytest.TempPathFactory, drawn: Any) -> None:
    cases, samples = drawn
    folder = tmp_path_factory.mktemp("kept")
    save(comparison_of(cases), samples, folder)
    kept, again = load(folder)
    assert kept == comparison_of(cases) and len(again) == len(samples)
    for one, other in zip(samples, again):
        assert (one.model, one.scheme, one.frame) == (other.model, other.scheme, other.frame)
        assert other.sent_nbytes == one.sent_nbytes
        assert other.seconds == pytest.approx(one.seconds, rel=1e-5)
        assert other.joules == (None if one.joules is None else pytest.approx(one.joules, rel=1e-5))


def test_a_missing_or_broken_comparison_is_reported(tmp_path: Path, cli: Any) -> None:
    fails(cli("bench", "--show", "."), 1, "holds no comparison", "--out")
    save(comparison_of([]), [Sample("a", "local", 0, 0.5, None, 0.0, None)], tmp_path)
    text = (tmp_path / "samples.csv").read_text()
    (tmp_path / "samples.csv").write_text(text.replace("0.5", "soon"))
    with pytest.raises(CoEdgeError, match="broken"):
        load(tmp_path)
    (tmp_path / "samples.csv").write_text("another,table\n1,2\n")
    with pytest.raises(CoEdgeError, match="broken"):
        load(tmp_path)


def test_tables_name_the_problems_of_schemes(tmp_path: Path, cli: Any) -> None:
    cases = [
        Case(model="a", scheme="modnn", problem="infeasible: predicted 9 ms, the deadline is 1 ms"),
        Case(model="a", scheme="auto", devices=("x", "y"), predicted_seconds=0.01),
        Case(model="a", scheme="aofl", devices=("x", "y"), predicted_seconds=0.01, same_as="auto"),
        Case(model="a", scheme="offload", devices=("y",)),
    ]
    samples = [Sample("a", "auto", 0, 0.012, 0.5, 0.0, {"x>y": 2000}), Sample("a", "offload", 0, 0.01, None, 0.0, None)]
    save(comparison_of(cases), samples, tmp_path)
    result = cli("bench", "--show", ".", "--links")
    assert result.code == 0
    for words in ("* modnn: infeasible", "aofl: same plan as auto", "auto is slower than offload on a (20.0%)", "x>y"):
        assert words in result.out
    assert "auto is never slower" not in result.out
    assert (tmp_path / "latency.svg").is_file() and (tmp_path / "prediction.svg").is_file()
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")}
    assert cli("bench", "--show", ".").code == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.svg")} == pictures, (
        "the same samples give the same pictures"
    )


def test_saved_measurements_are_not_overwritten(tmp_path: Path, cli: Any) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "samples.csv").write_text("")
    fails(cli("bench", "--out", "old"), 2, "old is not empty", "--show")


def test_the_best_single_device_is_the_one_that_computes_fastest() -> None:
    model = chain()
    profile = synthetic_profile(model, {"a": 0.2, "b": 0.9, "c": 0.5}, 1e7)
    name, seconds = best_single(model, profile)
    work = [Work(layer.index, layer.rows) for layer in model.layers]
    assert name == "b"
    assert seconds == profile.by_name["b"].compute_seconds(work) < profile.by_name["c"].compute_seconds(work)


def test_a_single_device_uses_energy_while_it_computes() -> None:
    profile = synthetic_profile(chain(), {"a": 1.0, "b": 0.5}, 1e7, watts={"a": (8.0, 1.0), "b": (2.0, 0.5)})
    run = single_device_run(profile, "b", 0.25, None)
    assert run.joules == pytest.approx(0.5) and run.sent_nbytes == {}


@pytest.mark.parametrize("speed", [None, 0.5])
def test_one_session_gives_the_unsplit_output(speed: float | None) -> None:
    from nets import unsplit

    model = chain()
    arrays = [np.random.default_rng(0).standard_normal(t.shape).astype(t.dtype) for t in model.inputs]
    seconds, outputs = UnsplitSession(model.reference, 1, speed).run(arrays)
    assert seconds > 0
    for got, expected in zip(outputs, unsplit(model, arrays), strict=True):
        assert np.array_equal(got, expected)


CLUSTER = """
devices:
  - {name: big, speed: 0.5, link: {mbps: 200, latency_ms: 0.2}, power: {compute_watts: 8.0, transmit_watts: 1.0}}
  - {name: small, speed: 0.4, link: {mbps: 200, latency_ms: 0.2}, power: {compute_watts: 2.0, transmit_watts: 0.5}}
source: big
cache_dir: cache
profile_budget_seconds: 1
"""


@pytest.mark.ray
def test_two_schemes_on_two_devices(tmp_path: Path, cli: Any) -> None:
    """The folder has all its files, for a network that every scheme except `local` splits."""
    network = small_network(tmp_path / "small.onnx")
    (tmp_path / "two.yaml").write_text(CLUSTER)
    args = ("--cluster", "two.yaml", "--models", network, "--schemes", "local,modnn,neurosurgeon", "--frames", "4")
    result = cli("bench", *args, "--size", "48", "--against", "onnxruntime,torch", "--out", "out", "--json")
    assert result.code == 0, result
    shown = json.loads(result.out)
    rows = {row["scheme"]: row for row in shown["rows"]}
    assert list(rows) == ["local", "modnn", "neurosurgeon", "onnxruntime", "torch"]
    assert "is not a torch module" in rows["torch"]["problem"] and rows["torch"]["median_seconds"] is None
    for scheme in ("local", "modnn", "neurosurgeon", "onnxruntime"):
        row = rows[scheme]
        assert not row["problem"] and row["frames"] == 4
        assert row["median_seconds"] > 0 and row["median_joules"] > 0 and row["predicted_seconds"] > 0
        assert row["difference"] <= 1e-5 and row["bound_seconds"] > 0
    assert rows["local"]["sent_nbytes"] == rows["onnxruntime"]["sent_nbytes"] == {}
    assert set(rows["modnn"]["sent_nbytes"]) == {"big>small", "small>big"}
    assert (
        rows["onnxruntime"]["devices"] == ["big"]
        and rows["onnxruntime"]["alone"]
        and "emulated, x 0.5" in rows["onnxruntime"]["note"]
    )
    out = tmp_path / "out"
    with (out / "samples.csv").open() as file:
        counts: dict[str, int] = {}
        for line in csv.DictReader(file):
            counts[line["scheme"]] = counts.get(line["scheme"], 0) + 1
    distinct = {scheme for scheme, row in rows.items() if not row["same_as"] and not row["problem"]}
    assert counts == dict.fromkeys(distinct, 4), "a plan shared by schemes runs once"
    for scheme in ("local", "modnn", "neurosurgeon"):
        assert Plan.load(out / "plans" / f"small.{scheme}.json").scheme == scheme
    profile = Profile.load(out / "profiles" / "small.json")
    timeline = Timeline.load(out / "timelines" / "small.modnn.json.gz")
    assert timeline.measured and set(timeline.devices) == {"big", "small"} == set(profile.names)
    again = json.loads(cli("bench", "--show", "out", "--json").out)
    assert [row["frames"] for row in again["rows"]] == [row["frames"] for row in shown["rows"]]
    assert {p.name for p in out.glob("*.svg")} == {"latency.svg", "energy.svg", "prediction.svg"}
