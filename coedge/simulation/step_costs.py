"""The predicted cost of a message at either end: its bytes, and the seconds that packing and unpacking take."""

from __future__ import annotations

from coedge.execution.program import RAW, Program, Receive, Send
from coedge.graph.model import Model
from coedge.plan.codec import codec_speed
from coedge.profile.profile import DeviceProfile


def message_nbytes(program: Program, step: Send | Receive, model: Model) -> int:
    """Return the bytes of the rows in a message before packing, without its header."""
    tensors = model.graph.tensors
    return sum(tensors[name].region_nbytes(region) for name, region in step.carried(program.patches))


def packing_seconds(program: Program, step: Send | Receive, model: Model, device: DeviceProfile) -> float:
    """Return how long a device needs to pack the rows of a message that it sends, or to unpack a received one.

    Raises:
        PlanError: the profile lacks the device's speed for the message's codec.
    """
    if step.codec == RAW:
        return 0.0
    speed = codec_speed(device, step.codec)
    nbytes = message_nbytes(program, step, model)
    if step.kind == "send":
        return len(step.parts) * speed.encode_seconds + nbytes / speed.encode_bytes_per_second
    return len(step.writes) * speed.decode_seconds + nbytes / speed.decode_bytes_per_second
