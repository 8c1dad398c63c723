"""Codecs: exact round trips, safe decoding of hostile bytes, and measured ratios."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nets import Array, Net, examples, image, intermediates, make_plan, zoo_image, zoo_model

from coedge.core.errors import PlanError
from coedge.core.region import UNIT, UnitRect
from coedge.execution.program import RAW, Send
from coedge.frontend.capture import capture
from coedge.plan.codec import CODECS, LOSSLESS, channel_key, packed_nbytes
from coedge.plan.lowering import lower
from coedge.plan.plan import Plan, check_plan
from coedge.simulation.step_costs import message_nbytes
from workers.calibration.activations import SAMPLE_NBYTES, natural_inputs, sample_activations
from workers.transport.codecs import HEADER, check_available, decode, encode, measure_codecs, typical_rows
from workers.transport.message import MalformedMessage

DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
PACKING = [codec for codec in CODECS if codec != RAW]


def bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def assert_same(got: Array, expected: Array) -> None:
    """Compare bit by bit: -0.0 differs from 0.0, and NaNs with other bits differ."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    assert bits(got) == bits(expected)


def there_and_back(codec: str, array: Array) -> Array:
    packed = encode(codec, array)
    assert packed.dtype == np.uint8 and packed.ndim == 1
    assert packed.nbytes <= HEADER + array.nbytes, "never larger than raw, but for the header"
    packed.setflags(write=False)  # as a received array
    return decode(codec, packed, array.shape, array.dtype)


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...] = DTYPES) -> Array:
    """Draw arrays of any dtype, shape and memory layout, some mostly zero, with every bit pattern of floats."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = random.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        values &= 1
    array = np.ascontiguousarray(values).view(dtype).reshape(shape)
    array[random.random(shape) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))] = 0
    layout = draw(st.sampled_from(["in order", "transposed", "every second"]))
    if layout == "transposed":
        return array.T
    return np.repeat(array, 2, axis=-1)[..., ::2] if layout == "every second" and shape else array


@pytest.mark.parametrize("codec", [RAW, *LOSSLESS])
@given(data=st.data())
@examples(150, 100)
def test_lossless_codecs_restore_every_bit(codec: str, data: st.DataObject) -> None:
    array = data.draw(arrays())
    if codec == RAW:
        assert_same(decode(codec, encode(codec, array), array.shape, array.dtype), array)
    else:
        assert_same(there_and_back(codec, array), array)


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8"])
def test_a_mask_covers_the_last_value_of_any_count(dtype: str) -> None:
    """The mask has one bit per value: its last byte is partly used where the count is no multiple of 8."""
    for count in range(17, 140):
        array = np.zeros(count, dtype)
        array[[0, -1]] = 1, 3
        assert encode("zero_mask", array).nbytes < HEADER + array.nbytes, "it is packed"
        assert_same(there_and_back("zero_mask", array), array)


@pytest.mark.parametrize("codec", LOSSLESS)
def test_minus_zero_and_every_nan_survive(codec: str) -> None:
    patterns = np.array([0, 0x80000000, 0x7FC00000, 0xFFC00001, 0x7F800001, 1, 0x80000001, 0x7F800000], np.uint32)
    array = np.concatenate([patterns, np.zeros(200, np.uint32)]).view(np.float32).reshape(1, 2, 8, 13)
    packed = encode(codec, array)
    assert packed.nbytes < array.nbytes / 2
    assert_same(decode(codec, packed, array.shape, "float32"), array)


def test_zero_mask_halves_the_output_of_a_relu() -> None:
    array = np.maximum(image((1, 8, 32, 32)), 0)
    share = np.count_nonzero(array) / array.size
    assert encode("zero_mask", array).nbytes == HEADER + array.size // 8 + round(share * array.nbytes)
    pixels = image((1, 3, 32, 32), "uint8")
    assert encode("zero_mask", pixels).nbytes == HEADER + pixels.nbytes, "hardly a zero: they travel as they are"


def test_blosc2_packs_repeated_rows() -> None:
    array = np.tile(np.linspace(0, 1, 64, dtype=np.float32), 100).reshape(1, 1, 100, 64)
    assert encode("blosc2", array).nbytes < array.nbytes / 10
    noise = np.random.default_rng(0).integers(0, 256, 4000, np.uint8)
    assert encode("blosc2", noise).nbytes == HEADER + noise.nbytes


@given(array=arrays(("f4", "f8")))
@examples(100)
def test_float16_rounds_or_sends_the_array_unpacked(array: Array) -> None:
    """An array with a value that is too large for float16, or not finite, is sent unpacked."""
    with np.errstate(over="ignore"):
        fits = np.isfinite(array.astype(np.float16)).all()
    back = there_and_back("float16", array)
    assert back.dtype == array.dtype
    if fits:
        assert_same(back, array.astype(np.float16).astype(array.dtype))
        assert np.all(np.abs(back - array) <= np.maximum(np.abs(array) * 2.0**-11, 2.0**-25))
    else:
        assert_same(back, array)


def test_float16_does_not_change_other_types() -> None:
    for dtype in DTYPES:
        array = np.arange(12).reshape(3, 4).astype(dtype)
        assert_same(there_and_back("float16", array), array)
    assert encode("float16", np.full(100, 65504, np.float32)).nbytes == HEADER + 200
    assert encode("float16", np.full(100, 65520, np.float32)).nbytes == HEADER + 400


def test_raw_is_the_array_itself() -> None:
    array = image((1, 2, 3, 4))
    assert encode(RAW, array) is array
    assert decode(RAW, array, array.shape, "float32") is array
    with pytest.raises(MalformedMessage, match=r"float32 \[1, 2, 4, 3\] is expected"):
        decode(RAW, array, (1, 2, 4, 3), "float32")


@pytest.mark.parametrize("codec", PACKING)
def test_dtypes_that_cannot_be_sent_are_refused(codec: str) -> None:
    with pytest.raises(ValueError, match="complex128 array cannot travel"):
        encode(codec, np.zeros(3, np.complex128))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(ValueError, match="no codec 'lz77'"):
        encode("lz77", np.ones(3))
    with pytest.raises(RuntimeError, match=r"does not know codec 'lz77'.*zero_mask"):
        check_available(["lz77"])


def test_a_device_without_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blosc2", None)
    check_available(["zero_mask", "float16", RAW])
    with pytest.raises(RuntimeError, match="pip install blosc2, or plan with another codec"):
        check_available(["blosc2"])
    speeds, ratios = measure_codecs({"x": np.zeros(1000, np.float32)}, 0.0)
    assert set(speeds) == set(ratios["x"]) == {"zero_mask", "float16"}


def decoded(codec: str, packed: Array, shape: tuple[int, ...], dtype: str) -> None:
    """Decode and check that the result is an array of the expected shape and dtype, or a refusal."""
    try:
        array = decode(codec, packed, shape, dtype)
    except MalformedMessage:
        return
    assert array.shape == shape and array.dtype == np.dtype(dtype)
    assert dtype != "bool" or set(np.unique(array.view(np.uint8))) <= {0, 1}


@pytest.mark.parametrize("codec", PACKING)
@given(
    data=st.binary(max_size=200),
    form=st.sampled_from([0, 1, 2, 255]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    dtype=st.sampled_from(DTYPES),
)
@examples(150)
def test_any_bytes_are_refused_or_decoded(
    codec: str, data: bytes, form: int, shape: tuple[int, ...], dtype: str
) -> None:
    decoded(codec, np.frombuffer(bytes([form]) + bytes(HEADER - 1) + data, np.uint8), shape, np.dtype(dtype).name)
    decoded(codec, np.frombuffer(data, np.uint8), shape, np.dtype(dtype).name)


@pytest.mark.parametrize("codec", PACKING)
@given(data=st.data())
@examples(150)
def test_damaged_arrays_are_refused_or_decoded(codec: str, data: st.DataObject) -> None:
    array = np.maximum(image((1, 4, data.draw(st.integers(1, 20)), 15)), 0)
    packed = encode(codec, array).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, packed.size - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.sampled_from([packed.size, packed.size - 1, packed.size // 2, HEADER, HEADER - 1, 0]))
    decoded(codec, packed[:kept], array.shape, "float32")
    decoded(codec, np.concatenate([packed, packed[: data.draw(st.integers(0, 9))]]), array.shape, "float32")
    decoded(codec, packed, (1, 4, array.shape[2], 16), "float32")
    decoded(codec, packed, array.shape, "float64")


@pytest.mark.parametrize("codec", PACKING)
def test_only_flat_bytes_are_accepted(codec: str) -> None:
    array = np.zeros((4, 4), np.float32)
    packed = encode(codec, array)
    for wrong in (packed.view(np.int8), packed.reshape(1, -1), array, packed[:0], np.uint8(0).reshape(())):
        with pytest.raises(MalformedMessage, match=rf"float32 \[4, 4\], packed as '{codec}', is expected"):
            decode(codec, wrong, array.shape, "float32")


@pytest.mark.parametrize("codec", PACKING)
def test_decoding_allocates_no_more_than_the_expected_array(codec: str) -> None:
    """A few bytes that unpack to 16 MB are refused where 4 KB are expected."""
    bomb = encode(codec, np.zeros(4_000_000, np.float32))
    if codec == "zero_mask":
        bomb = bomb[: HEADER + 128]
        bomb = np.concatenate([bomb[:HEADER], np.full(bomb.size, 255, np.uint8)])
    check_available([codec])
    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage):
            decode(codec, bomb, (1000,), "float32")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_bool_other_than_zero_or_one_is_refused() -> None:
    array = np.array([True, False] * 500)
    packed = {codec: encode(codec, array.view(np.uint8) * 2) for codec in LOSSLESS}
    for codec, wrong in packed.items():
        with pytest.raises(MalformedMessage, match="bytes other than 0 and 1"):
            decode(codec, wrong, array.shape, "bool")


def chunk(array: Array, **changed: Any) -> Array:
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "typesize": array.itemsize, "nthreads": 1}
    settings |= {"filters": [blosc2.Filter.SHUFFLE], "filters_meta": [0], **changed}
    body = blosc2.compress2(array, **settings)
    return np.frombuffer(bytes([1]) + bytes(HEADER - 1) + body, np.uint8)


@pytest.mark.parametrize(
    "changed",
    [
        {"codec": blosc2.Codec.LZ4},
        {"codec": blosc2.Codec.BLOSCLZ},
        {"filters": [blosc2.Filter.BITSHUFFLE]},
        {"filters": [blosc2.Filter.DELTA]},
        {"filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.DELTA], "filters_meta": [0, 0]},
        {"filters": [blosc2.Filter.TRUNC_PREC], "filters_meta": [10]},
        {"typesize": 8},
    ],
    ids=str,
)
def test_chunks_of_other_kinds_are_refused(changed: dict[str, Any]) -> None:
    array = np.tile(np.arange(100, dtype=np.float32), 100)
    assert_same(decode("blosc2", chunk(array), array.shape, "float32"), array)
    with pytest.raises(MalformedMessage, match="not a Blosc2 chunk"):
        decode("blosc2", chunk(array, **changed), array.shape, "float32")


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (2, 0x87),
        (2, 0x05),
        (2, 0xE5),
        (10, 0xFF),
        (11, 0xFF),
        (12, 1),
        (22, 160),
        (23, 1),
        (24, 1),
        (31, 0x40),
        (31, 0x08),
    ],
)
def test_a_chunk_with_a_forbidden_header_never_reaches_the_library(
    position: int, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.tile(np.arange(100, dtype=np.float32), 100)
    packed = chunk(array).copy()
    packed[HEADER + position] = value
    monkeypatch.setattr(blosc2, "decompress2", lambda *_, **__: pytest.fail("the library was called"))
    with pytest.raises(MalformedMessage, match="not a Blosc2 chunk"):
        decode("blosc2", packed, array.shape, "float32")


def test_measured_ratios_are_those_of_the_arrays() -> None:
    samples = {"half": np.maximum(image((1, 16, 40, 40)), 0), "none": image((1, 16, 40, 40)), "empty": np.zeros(0)}
    speeds, ratios = measure_codecs(samples, 0.05)
    assert set(speeds) == set(PACKING)
    assert all(s.encode_bytes_per_second > 1e6 and s.decode_bytes_per_second > 1e6 for s in speeds.values())
    assert ratios["empty"] == {}
    for name in ("half", "none"):
        expected = {codec: encode(codec, samples[name]).nbytes / samples[name].nbytes for codec in PACKING}
        assert ratios[name] == expected
    assert 0.5 < ratios["half"]["zero_mask"] < 0.56 < ratios["none"]["zero_mask"]
    assert measure_codecs({}, 1.0) == ({}, {})


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet", "ssd", "alexnet"])
def test_samples_are_rows_of_every_tensor_at_a_cut(name: str) -> None:
    model, x = zoo_model(name), zoo_image(name).numpy()
    samples = sample_activations(model, [x], threads=1)
    assert set(samples) == {tensor for cut in model.cuts for tensor in cut.tensors}
    whole = {**intermediates(model, [x]), model.graph.inputs[0]: x}
    assert all(sample.nbytes <= SAMPLE_NBYTES for sample in samples.values())
    for tensor, sample in samples.items():
        if tensor in whole and sample.shape == whole[tensor].shape:
            np.testing.assert_allclose(sample, whole[tensor], rtol=1e-4, atol=1e-4)


def test_samples_of_large_tensors_are_rows_from_the_middle() -> None:
    net = Net()
    first = net.op("Relu", net.op("Conv", net.input([1, 3, 99, 96]), net.weight(32, 3, 1, 1)))
    model = capture(net.proto(net.op("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2])), name="wide")
    x = image((1, 3, 99, 96))
    samples = sample_activations(model, [x], threads=1)
    rows = samples[first].shape[2]
    assert rows == 99 * SAMPLE_NBYTES // (32 * 99 * 96 * 4)
    start = (99 - rows) // 2
    expected = intermediates(model, [x])[first][:, :, start : start + rows]
    np.testing.assert_allclose(samples[first], expected, atol=1e-5)
    assert samples[first].flags.c_contiguous


def small_plan(codecs: dict[str, str]) -> tuple[Any, Plan]:
    net = Net()
    x = net.op("Relu", net.op("Conv", net.input([1, 3, 16, 8]), net.weight(4, 3, 3, 3), pads=[1, 1, 1, 1]))
    model = capture(net.proto(net.op("Conv", x, net.weight(4, 4, 3, 3), pads=[1, 1, 1, 1])), name="small")
    halves = {"a": UnitRect(row_stop=0.5), "b": UnitRect(row_start=0.5)}
    plan = make_plan(model, [(1, {"a": UNIT}), (1, halves)], "a")
    stages = (plan.stages[0], plan.stages[1].model_copy(update={"codecs": codecs}))
    return model, plan.model_copy(update={"stages": stages})


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ({"a>b": "zip"}, "stage 1: there is no codec 'zip' .*raw, zero_mask, blosc2, float16"),
        ({"a-b": "zero_mask"}, "stage 1: 'a-b' does not name a channel; .*'sender>receiver'"),
        ({">b": "zero_mask"}, "'>b' does not name a channel"),
        ({"a>": "zero_mask"}, "'a>' does not name a channel"),
        ({"a>a": "zero_mask"}, "'a>a' does not name a channel"),
        ({"": "zero_mask"}, "'' does not name a channel"),
        ({"a>c": "zero_mask"}, "names device 'c', which is not one of: a, b"),
        ({"a>b>a": "zero_mask"}, "names device 'b>a'"),
    ],
)
def test_a_plan_with_a_codec_that_makes_no_sense_is_refused(codecs: dict[str, str], message: str) -> None:
    model, plan = small_plan(codecs)
    with pytest.raises(PlanError, match=message):
        check_plan(plan, model)
    with pytest.raises(PlanError, match=message):
        lower(plan, model)


def test_both_ends_of_a_channel_know_its_codec() -> None:
    model, plan = small_plan({channel_key("a", "b"): "zero_mask"})
    programs = lower(plan, model)
    found = {
        (device, type(step).__name__, step.peer, step.stage): step.codec
        for device, program in programs.items()
        for step in program.steps
        if step.peer
    }
    assert found == {
        ("a", "Receive", "@client", -1): RAW,
        ("a", "Send", "b", 1): "zero_mask",
        ("b", "Receive", "a", 1): "zero_mask",
        ("b", "Send", "a", 2): RAW,
        ("a", "Receive", "b", 2): RAW,
    }


def test_packed_bytes_follow_from_the_measured_ratios() -> None:
    model, plan = small_plan({"a>b": "zero_mask"})
    program = lower(plan, model)["a"]
    (send,) = (step for step in program.steps if isinstance(step, Send))
    tensor = program.patches[send.parts[0].patch].tensor
    raw = message_nbytes(program, send, model)
    assert raw == 9 * 4 * 8 * 4
    assert packed_nbytes(program, send, model, {}) == raw
    assert packed_nbytes(program, send, model, {tensor: {"zero_mask": 0.5, "blosc2": 0.1}}) == raw // 2
    assert packed_nbytes(program, send, model, {tensor: {"blosc2": 0.1}}) == raw
    assert packed_nbytes(program, send, model, {"another": {"zero_mask": 0.5}}) == raw


@pytest.mark.parametrize("name", ["mobilenet_v2", "ssd"])
def test_neighbouring_pixels_of_natural_inputs_are_similar(name: str) -> None:
    model = zoo_model(name)
    (made,) = natural_inputs(model)
    (again,) = natural_inputs(model)
    np.testing.assert_array_equal(made, again)
    model.check_inputs([made])
    values = made.astype(np.float64)
    steps = np.abs(np.diff(values, axis=model.inputs[0].row_axis)).mean()
    assert 0 < steps < 0.8 * values.std(), "rows next to each other differ as much as any (1.13)"


def test_natural_inputs_of_integers_are_pixels() -> None:
    net = Net()
    x = net.input([1, 3, 32, 48], dtype="uint8")
    model = capture(net.proto(net.op("Cast", x, to=1)), name="pixels")
    (made,) = natural_inputs(model)
    assert made.dtype == np.uint8 and 100 < made.mean() < 156 and made.min() < 30 and made.max() > 226


def test_the_fixed_time_per_array_is_separated_from_the_time_per_byte() -> None:
    speeds, _ = measure_codecs(typical_rows(), 0.1)
    for speed in speeds.values():
        assert 0 <= speed.encode_seconds < 1e-2 and 0 <= speed.decode_seconds < 1e-2
        assert speed.encode_bytes_per_second > 1e6
