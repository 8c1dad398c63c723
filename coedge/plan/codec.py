"""Codecs: how rows are packed for the wire. This file has the names and facts; `workers.transport.codecs` packs.

    raw         unpacked
    zero_mask   lossless: a bit mask of the zeros, and the non-zero values (half of them after a ReLU)
    blosc2      lossless: byte shuffle, then zstd; slower than zero_mask, and often smaller
    float16     lossy: float32 and float64 rows at half precision; rows of other types are sent unpacked

Only tensors with rows are packed. A tensor without rows, such as the output of a dense layer, is small, or its shape
depends on the image and the receiver could not tell how much to unpack.

A stage names the codecs of the channels on which it fetches: {"pi-1>pi-2": "zero_mask"}.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from coedge.core.errors import PlanError
from coedge.execution.program import RAW, Program, Send
from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.profile.profile import CodecSpeed, DeviceProfile

__all__ = [
    "CODECS", "LOSSLESS", "LOSSY", "RAW", "channel_key", "check_codecs", "codec_speed", "packed_nbytes",
    "tensor_codec",
]  # fmt: skip

LOSSLESS = ("zero_mask", "blosc2")
LOSSY = ("float16",)
CODECS = (RAW, *LOSSLESS, *LOSSY)

_ARROW = ">"


def channel_key(sender: str, receiver: str) -> str:
    """Return the key of the channel between two devices in `Stage.codecs`."""
    return f"{sender}{_ARROW}{receiver}"


def check_codecs(codecs: Mapping[str, str], devices: Collection[str]) -> None:
    """Check the codecs of a stage.

    Raises:
        PlanError: an unknown codec, a key that is not `sender>receiver`, or a device that is not in the plan.
    """
    for key, codec in codecs.items():
        if codec not in CODECS:
            raise PlanError(f"there is no codec {codec!r} (of {key!r}); choose one of: {', '.join(CODECS)}")
        sender, arrow, receiver = key.partition(_ARROW)
        if not (arrow and sender and receiver) or sender == receiver:
            raise PlanError(
                f"{key!r} does not name a channel; write two devices as {channel_key('sender', 'receiver')!r}"
            )
        for name in (sender, receiver):
            if name not in devices:
                raise PlanError(
                    f"the codec of {key!r} names device {name!r}, which is not one of: {', '.join(devices)}"
                )


def tensor_codec(codec: str, tensor: Tensor) -> str:
    """Return the codec of one tensor in a message that has this codec."""
    return codec if tensor.row_axis is not None or tensor.col_axis is not None else RAW


def packed_nbytes(program: Program, step: Send, model: Model, ratios: Mapping[str, Mapping[str, float]]) -> int:
    """Return the predicted bytes of a message as packed by its codec, without its header.

    Args:
        ratios: packed bytes over raw bytes, by tensor and codec; 1 if not measured.
    """
    total = 0
    for name, region in step.carried(program.patches):
        tensor = model.graph.tensors[name]
        nbytes, codec = tensor.region_nbytes(region), tensor_codec(step.codec, tensor)
        total += nbytes if codec == RAW else math.ceil(nbytes * ratios.get(tensor.name, {}).get(codec, 1.0))
    return total


def codec_speed(device: DeviceProfile, codec: str) -> CodecSpeed:
    """Return how fast a device packs and unpacks with a codec.

    Raises:
        PlanError: the profile lacks that speed.
    """
    speed = device.codecs.get(codec)
    if speed is None:
        raise PlanError(
            f"the profile does not say how fast {device.name!r} packs as {codec!r}; measure the cluster again, "
            f"or send as {RAW!r}"
        )
    return speed
