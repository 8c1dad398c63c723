"""The codecs of `coedge.plan.codec` on NumPy arrays: packing for the wire, and unpacking.

A packed array is a flat uint8 array:

    byte 0      form: 0 raw, 1 packed
    bytes 1-15  zero, so that the values are aligned
    then        form 0                the bytes of the array, C order, little endian: packing did not make it smaller
                form 1, zero_mask     one bit per value, padded to 8 bytes | the values whose bit is 1
                form 1, blosc2        one Blosc2 chunk
                form 1, float16       the values at half precision

Packed arrays come over the network, so nothing in them is trusted. The receiver knows the shape and dtype: they
determine how much is allocated, and every length is checked against them.
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
# Length of the samples that show the fixed time per array.
FEW_VALUES = 256
_RAW_FORM, _PACKED_FORM = 0, 1
_WORDS = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
_HALF = np.dtype("<f2")
_HALF_INFINITY = 0x7C00

# The accepted values of Blosc2's chunk header. Other values may name filters and codecs from shared libraries, leave
# the output uninitialised, or refer to files.
_CHUNK_HEADER = 32
_CHUNK_FLAGS = (0x85, 0x95)  # extended header, zstd; split in streams or not
_CHUNK_SPECIAL = (0x00, 0x10)  # none, all zeros
_CHUNK_CODECS = (0, 5)  # as the flags say, zstd


def check_available(codecs: Iterable[str]) -> None:
    """Check that this device has these codecs, and load their libraries.

    Raises:
        RuntimeError: a codec is not known, or its library is not installed.
    """
    for codec in codecs:
        if codec not in CODECS:
            raise RuntimeError(f"this device does not know codec {codec!r}, only {', '.join(CODECS)}: update coedge")
        if codec == "blosc2":
            _blosc2()


def encode(codec: str, array: Array) -> Array:
    """Return the packed array; for `raw`, the array itself.

    Raises:
        ValueError: the codec is not known, or arrays of the dtype cannot be sent.
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
    """Return the array that was packed (rounded, for `float16`). It may be a view of `packed`.

    Raises:
        MalformedMessage: the bytes are not such an array.
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
            raise MalformedMessage(f"{dtype} {list(shape)} has {raw_nbytes} bytes, the message has {body.size}")
        values = _aligned(body, kind)
    elif codec == "zero_mask":
        values = _decode_zero_mask(body, count, words).view(kind)
    elif codec == "blosc2":
        values = _decode_blosc2(body, count, kind)
    elif codec == "float16" and kind.kind == "f" and kind.itemsize > _HALF.itemsize:
        if body.size != count * _HALF.itemsize:
            raise MalformedMessage(f"{list(shape)} in float16 has {count * 2} bytes, the message has {body.size}")
        values = _aligned(body, _HALF).astype(kind)
    else:
        raise MalformedMessage(f"{dtype} cannot be packed as {codec!r}")
    if kind.kind == "b" and values.view(np.uint8).max(initial=0) > 1:
        raise MalformedMessage("a bool array has bytes other than 0 and 1")
    return values.astype(np.dtype(dtype), copy=False).reshape(shape)


def _words(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the unsigned integer dtype with the size of a dtype's values."""
    if dtype.kind not in "biuf" or dtype.itemsize not in _WORDS:
        raise ValueError(f"a {dtype} array cannot travel: only bool, integers and float16/32/64 can")
    return _WORDS[dtype.itemsize]


def _framed(form: int, nbytes: int) -> Bytes:
    """Return an empty packed array with its header."""
    packed = np.empty(HEADER + nbytes, np.uint8)
    packed[:HEADER] = 0
    packed[0] = form
    return packed


def _aligned(body: Array, dtype: np.dtype[Any]) -> Array:
    """Return bytes as values: a view, or a copy if a network buffer is not aligned."""
    values: Array = body.view(dtype)
    return values if values.flags.aligned else values.copy()


def _mask_nbytes(count: int) -> int:
    """Return the bytes of one bit per value, padded to a multiple of 8."""
    return -(-count // 64) * 8


def _encode_zero_mask(words: Array) -> Bytes | None:
    """Pack the values that have a bit set: -0.0 and NaN are not zero. None: that is not smaller."""
    present = words != 0
    # The speed of indices and `take` does not depend on the pattern of zeros. A boolean index is up to five times
    # slower on an irregular pattern, because branches are mispredicted.
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
        raise MalformedMessage(f"the mask of {count} values has {mask_nbytes} bytes, the message has {body.size}")
    where = np.flatnonzero(np.unpackbits(body[: -(-count // 8)], count=count).view(np.bool_))
    if body.size != mask_nbytes + where.size * words.itemsize:
        raise MalformedMessage(f"the mask has {where.size} values, and {body.size - mask_nbytes} bytes follow")
    values = np.zeros(count, words)
    values[where] = _aligned(body[mask_nbytes:], words)
    return values


def _encode_float16(values: Array) -> Bytes | None:
    """Round to half precision. None: a value is too large for it or not finite, so the array is sent unpacked."""
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
        return None  # the library stored the bytes uncompressed
    packed = _framed(_PACKED_FORM, len(chunk))
    packed[HEADER:] = np.frombuffer(chunk, np.uint8)
    return packed


def _decode_blosc2(body: Array, count: int, dtype: np.dtype[Any]) -> Array:
    # The library allocates what the header says, so the header is checked first.
    if not count or not _is_chunk(body[:_CHUNK_HEADER].tobytes(), count, dtype.itemsize, body.size):
        raise MalformedMessage(f"the {body.size} bytes are not a Blosc2 chunk of {count} {dtype} values")
    blosc2 = _blosc2()
    values = np.zeros(count, dtype)
    try:
        blosc2.decompress2(body, dst=values, nthreads=1)
    except (RuntimeError, ValueError) as error:
        raise MalformedMessage(f"a Blosc2 chunk of {count} {dtype} values is damaged: {error}") from error
    return values


def _is_chunk(head: bytes, count: int, itemsize: int, nbytes: int | None = None) -> bool:
    """Return whether a header is that of a Blosc2 chunk that `_encode_blosc2` makes of `count` values.

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
    """Return arrays like the output of a ReLU, as large as a message, to measure speeds. (Ratios need real rows.)"""
    values = np.random.default_rng(0).standard_normal((4, 1 << 16), np.float32)
    return {f"rows {index}": np.maximum(row, 0) for index, row in enumerate(values)}


def measure_codecs(
    arrays: Mapping[str, Array], budget_seconds: float
) -> tuple[dict[str, CodecSpeed], dict[str, dict[str, float]]]:
    """Measure how fast this device packs and unpacks, and how much smaller each tensor becomes.

    The CPU time of this thread counts, because packing is single-threaded and other processes must not change the
    result. Speeds are those of the tensors that a codec makes smaller: on others it stops early, and plans do not use
    it. Codecs whose library is not installed are omitted.

    Args:
        arrays: samples, by tensor; see `workers.calibration.activations`.
        budget_seconds: approximate duration. Every codec goes through the samples at least twice.

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
        # Short arrays show the fixed time per array.
        short = [array.reshape(-1)[:FEW_VALUES] for array in smaller]
        passes = [(*_pass(codec, smaller), *_pass(codec, short))]
        while time.monotonic() < deadline:
            passes.append((*_pass(codec, smaller), *_pass(codec, short)))
        # The best pass, in which other processes disturbed the caches least.
        pack, unpack, pack_short, unpack_short = (min(seconds) for seconds in zip(*passes))
        nbytes, short_nbytes = (sum(array.nbytes for array in arrays) for arrays in (smaller, short))
        count = len(smaller)
        pack_seconds, pack_rate = _affine(count, (short_nbytes, pack_short), (nbytes, pack))
        unpack_seconds, unpack_rate = _affine(count, (short_nbytes, unpack_short), (nbytes, unpack))
        speeds[codec] = CodecSpeed(
            encode_bytes_per_second=pack_rate, decode_bytes_per_second=unpack_rate,
            encode_seconds=pack_seconds, decode_seconds=unpack_seconds,
        )  # fmt: skip
    return speeds, ratios


def _affine(count: int, small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Return the fixed seconds per array and the bytes per second, from (bytes, seconds) of `count` arrays."""
    (few, few_seconds), (nbytes, seconds) = small, large
    seconds = max(seconds, 1e-9)
    if nbytes > few and seconds > few_seconds:
        rate = (nbytes - few) / (seconds - few_seconds)
        return max(few_seconds - few / rate, 0.0) / count, rate
    return 0.0, nbytes / seconds


def _pass(codec: str, arrays: Iterable[Array]) -> tuple[float, float]:
    """Return the CPU seconds to pack these arrays, and to unpack them."""
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
