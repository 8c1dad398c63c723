"""The divisible-load bound: the latency if the work were sand, to be put beside what a plan is predicted to take.

Each device gets a share x of the input over the wire, computes at its measured speed and sends its share of the
answer back. No halos, no rounding, nothing to wait for but the source's up-link, which the others share:

    minimise T    subject to    x_k (in / rate_k + work_k + out / rate'_k) <= T,    sum of x_k in / rate_k <= T

`in` are the bytes of the input, `out` those of the answer, both as small as a lossless codec is known to make them;
`work` the seconds of the whole network.
"""

from __future__ import annotations

from coedge.graph.graph import Tensor
from coedge.graph.model import Model
from coedge.plan.codec import LOSSLESS
from coedge.profile.profile import Profile


def bound_seconds(model: Model, profile: Profile) -> float:
    """The divisible-load bound of a network on a cluster, seconds."""
    image = sum(_packed_nbytes(tensor, profile) for tensor in model.inputs)
    answer = sum(_packed_nbytes(tensor, profile) for tensor in model.outputs)
    rates: list[tuple[float, float]] = []  # (share per second of latency, seconds of the up-link per share)
    for device in profile.devices:
        work = sum(
            min(device.layer_time(layer.index, ends).seconds(layer.rows) for ends in (True, False))
            for layer in model.layers
        )
        out = back = 0.0
        if device.name != profile.source:
            out = image / _rate(profile, profile.source, device.name)
            back = answer / _rate(profile, device.name, profile.source)
        rates.append((1 / max(out + work + back, 1e-12), out))
    # With T given, everybody takes what they can, those first whose share costs the up-link least. Of both
    # conditions the sum of shares is concave in T and piecewise linear: bisection finds where it reaches one.
    rates.sort(key=lambda item: item[1])
    low, high = 0.0, 1 / max(rate for rate, _ in rates)
    for _ in range(60):
        middle = (low + high) / 2
        if _taken(rates, middle) >= 1:
            high = middle
        else:
            low = middle
    return high


def _packed_nbytes(tensor: Tensor, profile: Profile) -> float:
    known = profile.codec_ratios.get(tensor.name, {})
    return tensor.region_nbytes(tensor.whole) * min(1.0, *(known.get(codec, 1.0) for codec in LOSSLESS))


def _taken(rates: list[tuple[float, float]], seconds: float) -> float:
    """The share that is done within so many seconds."""
    total, link = 0.0, seconds
    for rate, out in rates:
        share = rate * seconds
        if out > 0:
            share = min(share, link / out)
            link -= share * out
        total += share
    return total


def _rate(profile: Profile, sender: str, receiver: str) -> float:
    shared = (medium.bytes_per_second for medium in profile.media_between(sender, receiver))
    return min((profile.link(sender, receiver).bytes_per_second, *shared))
