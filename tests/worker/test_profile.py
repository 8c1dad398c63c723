"""The profile: the affine fit of layer times, files, the cache on disk, and measuring a small model."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import Net

from coedge.core.errors import PlanError
from coedge.execution.program import Work
from coedge.frontend.capture import capture
from coedge.graph.analysis import model_from_skeleton
from coedge.graph.model import Model
from coedge.profile.profile import CodecSpeed, DeviceProfile, LayerTime, Link, Profile, scaled
from coedge.profile.stage_fit import fit_affine
from orchestrator.profiling.layer_cache import LayerTimes, load_times, store_times
from workers.calibration.layer_times import MOST_SWEEPS, LayerMeasurement, measure_gflops, measure_layers

ROWS = st.integers(1, 4096)
SECONDS = st.floats(1e-7, 100.0)


@given(st.lists(ROWS, min_size=2, max_size=8, unique=True), SECONDS, SECONDS)
def test_the_fit_recovers_affine_times(rows: list[int], fixed: float, per_row: float) -> None:
    assume(1e-3 < per_row * max(rows) / fixed < 1e3)  # else one of them is lost in rounding
    found = fit_affine((r, fixed + per_row * r) for r in rows)
    for r in (0.5, 1, 3, *rows):
        assert found.seconds(r) == pytest.approx(fixed + per_row * r, rel=1e-3)


@given(st.lists(st.tuples(ROWS, st.floats(0, 100.0)), max_size=12))
def test_no_part_of_a_fit_is_negative_or_infinite(points: list[tuple[int, float]]) -> None:
    found = fit_affine(points)
    for value in (found.fixed_seconds, found.seconds_per_row):
        assert 0 <= value < math.inf


@given(st.lists(st.tuples(ROWS, SECONDS), min_size=1, max_size=12), st.randoms())
def test_the_order_of_the_points_does_not_matter(points: list[tuple[int, float]], random) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)
    assert fit_affine(shuffled) == fit_affine(points)


@given(st.lists(st.tuples(ROWS, SECONDS), min_size=1, max_size=12))
def test_a_fit_stays_within_the_measured_range(points: list[tuple[int, float]]) -> None:
    low, high = min(s for _, s in points), max(s for _, s in points)
    fewest, most = min(r for r, _ in points), max(r for r, _ in points)
    found = fit_affine(points)
    assert found.seconds(fewest) <= high * (1 + 1e-6)
    assert found.seconds(most) >= low * (1 - 1e-6)


def test_one_row_count_gives_a_time_in_proportion_to_rows() -> None:
    assert fit_affine([(8.0, 2.0)]) == LayerTime(fixed_seconds=0, seconds_per_row=0.25)
    assert fit_affine([]) == LayerTime(fixed_seconds=0, seconds_per_row=0)


def test_a_layer_that_takes_longer_for_fewer_rows_is_taken_as_constant() -> None:
    found = fit_affine([(10.0, 1.0), (20.0, 0.5)])
    assert found.seconds_per_row == 0 and 0.5 <= found.fixed_seconds <= 1.0


def test_no_rows_take_no_time() -> None:
    assert LayerTime(fixed_seconds=1.0, seconds_per_row=1.0).seconds(0) == 0.0


def test_layers_of_one_stage_share_their_borders() -> None:
    alone = LayerTime(fixed_seconds=1.0, seconds_per_row=0.5)
    device = DeviceProfile(name="a", layers=(alone,) * 2, fused=(scaled(alone, 0.5),) * 2)
    assert device.compute_seconds([Work(0, 4)]) == 3.0
    assert device.compute_seconds([Work(0, 4), Work(1, 4)]) == 1.5 + 3.0
    assert device.model_copy(update={"fused": ()}).compute_seconds([Work(0, 4), Work(1, 4)]) == 6.0
    assert device.compute_seconds([]) == 0.0


@functools.cache
def small() -> Model:
    net = Net()
    x = net.input([1, 3, 32, 24])
    for channels, before in ((8, 3), (8, 8), (8, 8)):
        x = net.op("Relu", net.op("Conv", x, net.weight(channels, before, 3, 3), pads=[1, 1, 1, 1]))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    return capture(net.proto(net.op("Gemm", x, net.weight(8, 5))), name="small")


def profile_of(model: Model, names: tuple[str, ...] = ("a", "b")) -> Profile:
    layers = (LayerTime(fixed_seconds=0.001, seconds_per_row=1e-5),) * len(model.layers)
    return Profile(
        model_name=model.name,
        model_hash=model.hash,
        source=names[0],
        devices=tuple(DeviceProfile(name=name, layers=layers) for name in names),
        links=tuple(
            Link(sender=a, receiver=b, bytes_per_second=1e6, latency_seconds=1e-3)
            for a in names
            for b in names
            if a != b
        ),
    )


def test_a_profile_is_equal_after_saving_and_loading(tmp_path: Path) -> None:
    profile = profile_of(small())
    profile.save(tmp_path / "profile.json")
    loaded = Profile.load(tmp_path / "profile.json")
    assert loaded == profile
    loaded.check(small())


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe\x00garbage", b'{"model_name": "x"}', b"null"],
    ids=["empty", "cut off", "a list", "not text", "incomplete", "null"],
)
def test_a_file_that_is_not_a_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match=r"profile\.json"):
        Profile.load(path)


def test_the_error_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read the profile .*missing\.json: "):
        Profile.load(tmp_path / "missing.json")


def test_a_negative_time_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(profile_of(small()).model_dump_json().replace("0.001", "-0.001", 1), encoding="utf-8")
    with pytest.raises(PlanError, match=r"is not a profile: devices\.0\.layers\.0\.fixed_seconds"):
        Profile.load(path)


def test_a_profile_of_another_model_is_refused() -> None:
    profile = profile_of(small()).model_copy(update={"model_hash": "0" * 16})
    with pytest.raises(PlanError, match="measure this one"):
        profile.check(small())


def test_a_profile_with_a_gap_is_refused() -> None:
    model = small()
    whole = profile_of(model)
    with pytest.raises(PlanError, match="no link from 'b' to 'a'"):
        whole.model_copy(update={"links": whole.links[:1]}).check(model)
    with pytest.raises(PlanError, match="source 'c' is not one of"):
        whole.model_copy(update={"source": "c"}).check(model)
    short = whole.devices[1].model_copy(update={"layers": whole.devices[1].layers[:-1]})
    with pytest.raises(PlanError, match="profile of 'b' has"):
        whole.model_copy(update={"devices": (whole.devices[0], short)}).check(model)


TIMES = LayerTimes(
    fingerprint="cpu|1",
    model_hash="0123456789abcdef",
    layers=(LayerTime(fixed_seconds=0.1, seconds_per_row=0.01),),
    fused=(LayerTime(fixed_seconds=0.05, seconds_per_row=0.01),),
    send_seconds=1e-5,
    receive_seconds=2e-5,
    codecs={"zero_mask": CodecSpeed(encode_bytes_per_second=4e9, decode_bytes_per_second=2e9, encode_seconds=1e-5)},
)


def test_layer_times_are_kept_by_model_and_kind_of_machine(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    assert load_times(folder, TIMES.model_hash, TIMES.fingerprint) is None
    store_times(folder, TIMES)
    assert load_times(folder, TIMES.model_hash, TIMES.fingerprint) == TIMES
    assert load_times(folder, TIMES.model_hash, "cpu|2") is None
    assert load_times(folder, "f" * 16, TIMES.fingerprint) is None
    assert [p.suffix for p in folder.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00\x80",
        b"{}",
        TIMES.model_dump_json().replace("0.05", "-0.05").encode(),
        TIMES.model_copy(update={"model_hash": "f" * 16}).model_dump_json().encode(),
        TIMES.model_copy(update={"fingerprint": "another"}).model_dump_json().encode(),
    ],
    ids=["empty", "cut off", "not text", "incomplete", "impossible", "other model", "other machine"],
)
def test_an_unreadable_cache_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    store_times(tmp_path, TIMES)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert load_times(tmp_path, TIMES.model_hash, TIMES.fingerprint) is None
    store_times(tmp_path, TIMES)
    assert load_times(tmp_path, TIMES.model_hash, TIMES.fingerprint) == TIMES


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder", encoding="utf-8")
    store_times(occupied, TIMES)
    assert load_times(occupied, TIMES.model_hash, TIMES.fingerprint) is None
    store_times(tmp_path / "cache", TIMES)
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    path.mkdir()  # what takes its place cannot be replaced by a file
    store_times(tmp_path / "cache", TIMES)
    assert load_times(tmp_path / "cache", TIMES.model_hash, TIMES.fingerprint) is None
    assert list((tmp_path / "cache").iterdir()) == [path], "a draft was left behind"


def test_times_of_an_emulated_device_are_longer_in_proportion() -> None:
    assert scaled(TIMES.layers[0], 4.0) == LayerTime(fixed_seconds=0.4, seconds_per_row=0.04)
    packing = CodecSpeed(encode_bytes_per_second=1e9, decode_bytes_per_second=5e8, encode_seconds=4e-5)
    assert TIMES.codecs["zero_mask"].scaled(4.0) == packing


@pytest.mark.parametrize("speed", [0.3, None])
def test_every_layer_gets_a_time_above_zero(speed: float | None) -> None:
    model = small()
    times = measure_layers(model, threads=1, speed=speed, budget_seconds=0.5)
    assert len(times.layers) == len(times.fused) == len(model.layers)
    for layer, found in zip(model.layers, times.layers):
        assert 0 < found.seconds(max(layer.rows, 1)) < 5.0
    assert 0 < times.send_seconds < 1.0 and 0 < times.receive_seconds < 1.0


def test_measured_times_make_a_profile_that_fits_its_model() -> None:
    model = model_from_skeleton(small().skeleton, {})  # what a worker has: no weights
    times = measure_layers(model, threads=1, speed=0.3, budget_seconds=0.01)
    device = DeviceProfile(name="a", layers=times.layers, fused=times.fused)
    profile = Profile(model_name="small", model_hash=small().hash, devices=(device,), source="a")
    profile.check(small())


@pytest.mark.clock
def test_a_layer_of_more_work_is_measured_as_slower() -> None:
    net = Net()
    x = net.op("Conv", net.input([1, 4, 64, 64]), net.weight(4, 4, 1, 1))
    x = net.op("Conv", x, net.weight(64, 4, 3, 3), pads=[1, 1, 1, 1])
    model = capture(net.proto(net.op("Conv", x, net.weight(64, 64, 3, 3), pads=[1, 1, 1, 1])), name="uneven")
    times = measure_layers(model, threads=1, speed=0.3, budget_seconds=0.5)
    light, _, heavy = (t.seconds(64) for t in times.layers)
    # 151 M multiply-adds against 65 k, two thousand times as many: more than any noise.
    assert heavy > 5 * light


def test_a_short_time_budget_leaves_out_sweeps() -> None:
    """A long budget has room for all measurements, those of longer stages included."""
    rounds = {}
    for budget_seconds in (0.001, 100.0):
        play = LayerMeasurement(small(), 1, 0.3, budget_seconds)
        try:
            rounds[budget_seconds] = len(play.sweeps(MOST_SWEEPS)), play.done
        finally:
            play.close()
    assert rounds[100.0][0] > 2 * rounds[0.001][0] > 0
    assert rounds[100.0][1] == 1.0


def test_a_figure_for_the_speed_of_this_machine() -> None:
    assert 0.01 < measure_gflops(1, cpu_time=True) < 10_000
