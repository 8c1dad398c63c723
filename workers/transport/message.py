"""The messages between devices, and their bytes.

    part 0   header | array | array | ...      little endian, no padding
    part 1   raw bytes of array 0, C order
    part 2   raw bytes of array 1
    ...

    header   magic 4s | version u8 | kind u8 | arrays u16 | sender i32 | epoch u32 | channel u32 | frame u64 | due f64
    array    dtype u8 | ndim u8 | ndim x u64

Nothing is pickled, so bytes from a broken or hostile peer are refused and never executed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAGIC = b"CoEd"
VERSION = 2
MAX_NDIM = 32

_HEADER = Struct("<4sBBHiIIQd")
_ARRAY = [Struct(f"<BB{ndim}Q") for ndim in range(MAX_NDIM + 1)]
_PREFIX = _ARRAY[0]

# The code of a dtype is its position here, from 1; append only. Bytes on the wire are little endian.
_DTYPES = [np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")]
_WIRE = {code: dtype.newbyteorder("<") for code, dtype in enumerate(_DTYPES, start=1)}
_CODES = {dtype: code for code, dtype in _WIRE.items()}
_BOOL = _CODES[np.dtype("?")]


class MalformedMessage(ValueError):
    """Bytes that are not a message, or not one that is expected here."""


class MessageKind(IntEnum):
    """The purpose of a message. Append only: the numbers are sent."""

    DATA = 1  # rows of a tensor
    ANSWER = 2  # the output of a frame
    ERROR = 3  # a text, see `text_to_array`
    TRACE = 4  # spans of a timeline
    CANCEL = 5
    PROBE = 6  # asks for an ECHO
    ECHO = 7
    # The sender is alive. To the client, with the indices of the peers that it does not hear; the channel has the
    # milliseconds for which it may be silent.
    HEARTBEAT = 8


_KINDS = {int(kind): kind for kind in MessageKind}


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """One message.

    Attributes:
        sender: index of the sending device, i32.
        epoch: of the plan, u32. Messages of an older epoch are stale.
        frame: u64.
        channel: number of the transfer within the program, u32.
        due: arrival time in the emulated network, f64, in seconds of the monotonic clock that both ends share. 0: the
            real arrival counts. See `PacedTransport`.
        arrays: bool, integer or float16/32/64 arrays of any shape. The arrays of a received message are read-only.
    """

    kind: MessageKind
    sender: int
    epoch: int = 0
    frame: int = 0
    channel: int = 0
    arrays: tuple[Array, ...] = ()
    due: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all encoded parts."""
        header = _HEADER.size + sum(_PREFIX.size + 8 * array.ndim for array in self.arrays)
        return header + sum(array.nbytes for array in self.arrays)


def encode(message: Message) -> tuple[bytes, list[memoryview]]:
    """Return the header and the bytes of each array: views of contiguous arrays, copies of others.

    Raises:
        ValueError: an array has another dtype, or more than 32 dimensions.
    """
    arrays = [_wire_array(array) for array in message.arrays]
    m = message
    fields = [_HEADER.pack(MAGIC, VERSION, m.kind, len(arrays), m.sender, m.epoch, m.channel, m.frame, m.due)]
    fields.extend(_ARRAY[a.ndim].pack(_CODES[a.dtype], a.ndim, *a.shape) for a in arrays)
    return b"".join(fields), [array.data for array in arrays]


def decode(header: bytes | memoryview, buffers: Sequence[bytes | memoryview]) -> Message:
    """Return the message in these bytes. Its arrays are read-only views of `buffers` (copies of unaligned ones).

    Raises:
        MalformedMessage: the bytes are not a message.
    """
    end = len(header)
    if end < _HEADER.size:
        raise MalformedMessage(f"the header has {end} bytes, at least {_HEADER.size} expected")
    magic, version, kind_code, count, sender, epoch, channel, frame, due = _HEADER.unpack_from(header)
    if magic != MAGIC:
        raise MalformedMessage(f"the magic bytes are {magic!r}, {MAGIC!r} expected")
    if version != VERSION:
        raise MalformedMessage(f"the wire version is {version}, {VERSION} expected: update the older device")
    kind = _KINDS.get(kind_code)
    if kind is None:
        raise MalformedMessage(f"there is no kind {kind_code}")
    if not 0 <= due < math.inf:
        raise MalformedMessage(f"it is due at {due} s, which is not a time")
    if count != len(buffers):
        raise MalformedMessage(f"the header announces {count} arrays, the message has {len(buffers)}")
    arrays = []
    offset = _HEADER.size
    for buffer in buffers:
        if offset + _PREFIX.size > end:
            raise MalformedMessage("the header ends before its last array")
        code, ndim = _PREFIX.unpack_from(header, offset)
        if code not in _WIRE or ndim > MAX_NDIM:
            raise MalformedMessage(f"there is no array of dtype code {code} with {ndim} dimensions")
        layout = _ARRAY[ndim]
        if offset + layout.size > end:
            raise MalformedMessage("the header ends within a shape")
        arrays.append(_array(code, layout.unpack_from(header, offset)[2:], buffer))
        offset += layout.size
    if offset != end:
        raise MalformedMessage(f"the header has {end - offset} bytes too many")
    return Message(kind, sender, epoch, frame, channel, tuple(arrays), due)


def text_to_array(text: str) -> Array:
    """Return the UTF-8 bytes of a text, uint8."""
    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8)


def array_to_text(array: Array) -> str:
    """Return the text of UTF-8 bytes. Bytes that are not UTF-8 become U+FFFD."""
    return array.tobytes().decode("utf-8", "replace")


def _wire_array(array: Array) -> Array:
    """Return the array itself if it is contiguous and little endian, else a copy that is."""
    if array.dtype not in _CODES:
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _CODES:
            raise ValueError(f"a {dtype} array cannot travel: only bool, integers and float16/32/64 can")
        array = array.astype(dtype)
    if array.ndim > MAX_NDIM:
        raise ValueError(f"an array of {array.ndim} dimensions cannot travel: at most {MAX_NDIM} can")
    # np.ascontiguousarray makes 0-d arrays 1-d, so it is called for others only.
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def _array(code: int, shape: tuple[int, ...], buffer: bytes | memoryview) -> Array:
    dtype = _WIRE[code]
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != len(buffer):
        raise MalformedMessage(f"a {dtype} array of shape {shape} has {nbytes} bytes, the message has {len(buffer)}")
    try:
        array: Array = np.ndarray(shape, dtype, buffer)
    except (ValueError, OverflowError) as error:  # the shape of an empty array may exceed NumPy's limits
        raise MalformedMessage(f"no array can have shape {shape}: {error}") from error
    if code == _BOOL and array.view(np.uint8).max(initial=0) > 1:
        raise MalformedMessage("a bool array has bytes other than 0 and 1")
    if not array.flags.aligned:
        array = array.copy()
    array.setflags(write=False)
    return array
