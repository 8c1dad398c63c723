"""Packs rows for the wire and unpacks them, by the codecs of `coedge.plan.codec`, on NumPy arrays.

A packed array is a flat uint8 array:

    byte 0      form: 0 raw, 1 packed
    bytes 1-15  zero, so that what follows is aligned
    then        form 0                the bytes of the array, C order, little endian: packing did not make it smaller
                form 1, zero_mask     one bit per value, padded to 8 bytes | the values whose bit is 1
                form 1, blosc2        one Blosc2 chunk
                form 1, float16       the values at half precision

It comes over the network, so nothing in it is trusted. Shape and dtype are those that the receiver expects: they
say how much is allocated, and every length is checked against them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coedge.plan.codec import CODECS, RAW
from coedge.profile.profile import CodecSpeed
from workers.transport.message import MalformedMessage

Array = NDArray[Any]
Bytes = NDArray[np.uint8]

HEADER = 16
# Of samples that are to show what an array costs besides its bytes.
FEW_VALUES = 256
_RAW_FORM, _PACKED_FORM = 0, 1
_WORDS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
_HALF = np.dtype("<f2")
_HALF_INFINITY = 0x7C00

# Blosc2's chunk header, and the only values that are taken. Others may name filters and codecs that are loaded
# from elsewhere, leave the output uninitialised, or refer to files.
_CHUNK_HEADER = 32
_CHUNK_FLAGS = (0x85, 0x95)  # extended header, zstd; split in streams or not
_CHUNK_SPECIAL = (0x00, 0x10)  # none, all zeros
_CHUNK_CODECS = (0, 5)  # as the flags say, zstd


def check_available(codecs: Iterable[str]) -> None:
    """Checks that this device can pack by these codecs, and loads what they need.

    Raises:
        RuntimeError: a codec is not known, or its library is not installed.
    """
    for codec in codecs:
        if codec not in CODECS:
            raise RuntimeError(f"this device does not know codec {codec!r}; update it: it knows {', '.join(CODECS)}")
        if codec == "blosc2":
            _blosc2()


def encode(codec: str, array: Array) -> Array:
    """A packed array; for `raw`, the array itself.

    Raises:
        ValueError: the codec is not known, or the dtype is none that travels.
    """
    if codec == RAW:
        return array
    words = _words(array.dtype)
    values = np.ascontiguousarray(array).reshape(-1)
    values = values.astype(array.dtype.newbyteorder("<"), copy=False)
    packed: Bytes | None = None
    if not values.size:
        pass
    elif codec == "zero_mask":
        packed = _encode_zero_mask(values.view(words))
    elif codec == "blosc2":
        packed = _encode_blosc2(values)
    elif codec == "float16":
        packed = _encode_float16(values)
    else:
        raise ValueError(f"there is no codec {codec!r}")
    if packed is None or packed.nbytes >= HEADER + values.nbytes:
        packed = _framed(_RAW_FORM, values.nbytes)
        packed[HEADER:] = values.view(np.uint8)
    return packed


def decode(codec: str, packed: Array, shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> Array:
    """The array again, as `encode` got it (rounded, for `float16`); it may be a view of `packed`.

    Raises:
        MalformedMessage: these are not the bytes of such an array.
    """
    if codec == RAW:
        if packed.shape != shape or packed.dtype != np.dtype(dtype):
            raise MalformedMessage(f"{dtype} {list(shape)} is expected")
        return packed
    kind = np.dtype(dtype).newbyteorder("<")
    words, count = _words(kind), math.prod(shape)
    raw_nbytes = count * kind.itemsize
    if packed.dtype != np.uint8 or packed.ndim != 1 or not HEADER <= packed.size <= HEADER + raw_nbytes:
        raise MalformedMessage(f"{dtype} {list(shape)}, packed as {codec!r}, is expected")
    form, body = int(packed[0]), packed[HEADER:]
    if form not in (_RAW_FORM, _PACKED_FORM) or packed[1:HEADER].any():
        raise MalformedMessage(f"a packed array begins with {packed[:HEADER].tobytes().hex(' ')}")
    values: Array
    if form == _RAW_FORM:
        if body.size != raw_nbytes:
            raise MalformedMessage(f"{body.size} bytes came, {dtype} {list(shape)} has {raw_nbytes}")
        values = _aligned(body, kind)
    elif codec == "zero_mask":
        values = _decode_zero_mask(body, count, words).view(kind)
    elif codec == "blosc2":
        values = _decode_blosc2(body, count, kind)
    elif codec == "float16" and kind.kind == "f" and kind.itemsize > _HALF.itemsize:
        if body.size != count * _HALF.itemsize:
            raise MalformedMessage(f"{body.size} bytes came, {list(shape)} at half precision has {count * 2}")
        values = _aligned(body, _HALF).astype(kind)
    else:
        raise MalformedMessage(f"{dtype} cannot be packed as {codec!r}")
    if kind.kind == "b" and values.view(np.uint8).max(initial=0) > 1:
        raise MalformedMessage("a bool array has bytes other than 0 and 1")
    return values.astype(np.dtype(dtype), copy=False).reshape(shape)


def _words(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integers that a dtype's values are, bit by bit."""
    if dtype.kind not in "biuf" or dtype.itemsize not in _WORDS:
        raise ValueError(f"a {dtype} array cannot travel: only bool, integers and float16/32/64 can")
    return _WORDS[dtype.itemsize]


def _framed(form: int, nbytes: int) -> Bytes:
    """Room for a packed array."""
    packed = np.empty(HEADER + nbytes, np.uint8)
    packed[:HEADER] = 0
    packed[0] = form
    return packed


def _aligned(body: Array, dtype: np.dtype[Any]) -> Array:
    """Bytes as values: a view, but where a network buffer lies askew."""
    values: Array = body.view(dtype)
    return values if values.flags.aligned else values.copy()


def _mask_nbytes(count: int) -> int:
    """Bytes of one bit per value, padded so that 8-byte values may follow."""
    return -(-count // 64) * 8


def _encode_zero_mask(words: Array) -> Bytes | None:
    """Zero is what has no bit set: -0.0 and NaN are values like others."""
    present = words != 0
    # Indices and `take` run at the same speed whatever the pattern of zeros is; a boolean index is up to five
    # times slower on one that no branch predictor guesses.
    where = np.flatnonzero(present)
    mask_nbytes = _mask_nbytes(words.size)
    nbytes = mask_nbytes + where.size * words.itemsize
    if nbytes >= words.nbytes:
        return None
    packed = _framed(_PACKED_FORM, nbytes)
    bits = np.packbits(present)
    packed[HEADER : HEADER + bits.size] = bits
    packed[HEADER + bits.size : HEADER + mask_nbytes] = 0
    values = packed[HEADER + mask_nbytes :].view(words.dtype)
    words.take(where, out=values, mode="clip")  # the other modes copy `out`
    return packed


def _decode_zero_mask(body: Array, count: int, words: np.dtype[Any]) -> Array:
    mask_nbytes = _mask_nbytes(count)
    if body.size < mask_nbytes:
        raise MalformedMessage(f"{body.size} bytes came, the mask of {count} values alone has {mask_nbytes}")
    where = np.flatnonzero(np.unpackbits(body[: -(-count // 8)], count=count).view(np.bool_))
    if body.size != mask_nbytes + where.size * words.itemsize:
        raise MalformedMessage(f"a mask of {where.size} values came with {body.size - mask_nbytes} bytes of them")
    values = np.zeros(count, words)
    values[where] = _aligned(body[mask_nbytes:], words)
    return values


def _encode_float16(values: Array) -> Bytes | None:
    """None where a value is too large for half precision, or not finite: then all are sent as they are."""
    if values.dtype.kind != "f" or values.itemsize <= _HALF.itemsize:
        return None
    packed = _framed(_PACKED_FORM, values.size * _HALF.itemsize)
    half = packed[HEADER:].view(_HALF)
    with np.errstate(over="ignore", under="ignore"):
        half[:] = values
    too_large = (half.view(np.uint16) & _HALF_INFINITY) == _HALF_INFINITY
    return None if too_large.any() else packed


def _encode_blosc2(values: Array) -> Bytes | None:
    blosc2 = _blosc2()
    if values.nbytes > blosc2.MAX_BUFFERSIZE:
        return None
    chunk = blosc2.compress2(
        values,
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        typesize=values.itemsize,
        filters=[blosc2.Filter.SHUFFLE],
        filters_meta=[0],
        nthreads=1,
    )
    if not _is_chunk(chunk, values.size, values.itemsize):
        return None  # it stored the bytes as they are
    packed = _framed(_PACKED_FORM, len(chunk))
    packed[HEADER:] = np.frombuffer(chunk, np.uint8)
    return packed


def _decode_blosc2(body: Array, count: int, dtype: np.dtype[Any]) -> Array:
    # The library's buffers are as large as the header says: it is read before the library sees it.
    if not count or not _is_chunk(body[:_CHUNK_HEADER].tobytes(), count, dtype.itemsize, body.size):
        raise MalformedMessage(f"{body.size} bytes came that are no Blosc2 chunk of {count} {dtype} values")
    blosc2 = _blosc2()
    values = np.zeros(count, dtype)
    try:
        blosc2.decompress2(body, dst=values, nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise MalformedMessage(f"a Blosc2 chunk of {count} {dtype} values is damaged: {error}") from error
    return values


def _is_chunk(head: bytes, count: int, itemsize: int, nbytes: int | None = None) -> bool:
    """Whether a Blosc2 chunk is one that `_encode_blosc2` makes of so many values.

    Layout: https://github.com/Blosc/c-blosc2/blob/main/README_CHUNK_FORMAT.rst
    """
    if len(head) < _CHUNK_HEADER:
        return False
    raw, block, chunk = (int.from_bytes(head[at : at + 4], "little", signed=True) for at in (4, 8, 12))
    return (
        head[2] in _CHUNK_FLAGS
        and head[3] == itemsize
        and raw == count * itemsize
        and 0 < block <= raw
        and chunk == (len(head) if nbytes is None else nbytes)
        and sorted(head[16:22]) == [0, 0, 0, 0, 0, 1]  # one filter: shuffle
        and head[22] in _CHUNK_CODECS
        and not any(head[23:31])
        and head[31] in _CHUNK_SPECIAL
    )


def _blosc2() -> Any:
    try:
        import blosc2
    except ImportError as error:
        raise RuntimeError(
            f"codec 'blosc2' needs a library that this device does not have ({error}); pip install blosc2, "
            "or plan with another codec"
        ) from None
    return blosc2


def typical_rows() -> dict[str, Array]:
    """Such as a ReLU leaves behind, as large as a message: for speeds. Ratios need the rows of a network."""
    values = np.random.default_rng(0).standard_normal((4, 1 << 16), np.float32)
    return {f"rows {index}": np.maximum(row, 0) for index, row in enumerate(values)}


def measure_codecs(
    arrays: Mapping[str, Array], budget_seconds: float
) -> tuple[dict[str, CodecSpeed], dict[str, dict[str, float]]]:
    """How fast this device packs and unpacks, and how much smaller that makes each tensor.

    CPU time of this thread counts: packing is single-threaded, and what else runs here is not its fault. A speed
    is that of the tensors which a codec makes smaller: the others are soon given up, and nobody would pack them.
    Codecs whose library is not installed are left out.

    Args:
        arrays: samples, by tensor; see `workers.calibration.activations`.
        budget_seconds: about how long it may take. Every codec goes through the samples twice, whatever it says.

    Returns:
        Speeds by codec; packed over raw bytes by tensor and codec.
    """
    speeds: dict[str, CodecSpeed] = {}
    ratios: dict[str, dict[str, float]] = {name: {} for name in arrays}
    samples = {name: array for name, array in arrays.items() if array.size}
    codecs = [codec for codec in CODECS if codec != RAW and samples and _is_available(codec)]
    for codec in codecs:
        deadline = time.monotonic() + budget_seconds / len(codecs)
        for name, array in samples.items():
            ratios[name][codec] = encode(codec, array).nbytes / array.nbytes
        smaller = [array for name, array in samples.items() if ratios[name][codec] < 1] or list(samples.values())
        # As they are, and beginnings of them: what is left of the time of few bytes is that of an array.
        begun = [array.reshape(-1)[:FEW_VALUES] for array in smaller]
        passes = [(*_pass(codec, smaller), *_pass(codec, begun))]
        while time.monotonic() < deadline:
            passes.append((*_pass(codec, smaller), *_pass(codec, begun)))
        # The best pass: in others, the caches were somebody else's.
        pack, unpack, pack_begun, unpack_begun = (min(seconds) for seconds in zip(*passes))
        nbytes, few = (sum(array.nbytes for array in arrays) for arrays in (smaller, begun))
        count = len(smaller)
        pack_seconds, pack_rate = _affine(count, (few, pack_begun), (nbytes, pack))
        unpack_seconds, unpack_rate = _affine(count, (few, unpack_begun), (nbytes, unpack))
        speeds[codec] = CodecSpeed(
            encode_bytes_per_second=pack_rate, decode_bytes_per_second=unpack_rate,
            encode_seconds=pack_seconds, decode_seconds=unpack_seconds,
        )  # fmt: skip
    return speeds, ratios


def _affine(count: int, small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Seconds of an array besides its bytes, and bytes per second, from (bytes, seconds) of `count` arrays."""
    (few, few_seconds), (nbytes, seconds) = small, large
    seconds = max(seconds, 1e-9)
    if nbytes > few and seconds > few_seconds:
        rate = (nbytes - few) / (seconds - few_seconds)
        return max(few_seconds - few / rate, 0.0) / count, rate
    return 0.0, nbytes / seconds


def _pass(codec: str, arrays: Iterable[Array]) -> tuple[float, float]:
    """CPU seconds to pack these arrays, and to unpack them."""
    packing = unpacking = 0.0
    for array in arrays:
        start = time.thread_time()
        packed = encode(codec, array)
        middle = time.thread_time()
        decode(codec, packed, array.shape, array.dtype)
        packing += middle - start
        unpacking += time.thread_time() - middle
    return packing, unpacking


def _is_available(codec: str) -> bool:
    try:
        check_available([codec])
    except RuntimeError:
        return False
    return True
