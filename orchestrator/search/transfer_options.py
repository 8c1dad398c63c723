"""How a plan's transfers are dressed: packed by a codec, and sent before the rest of the stage is computed.

A codec pays on a link where packing, the shorter way and unpacking together take less than the way of the raw
bytes. Per byte that needs no knowledge of the plan:

    1 / encode + ratio / rate + 1 / decode  <  1 / rate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coedge.core.objective import Objective
from coedge.graph.model import Model
from coedge.plan.codec import LOSSY, RAW, channel_key
from coedge.plan.plan import Stage
from coedge.profile.profile import Link, Profile

# Of codecs that pay by less, the guess would be noise.
LEAST_GAIN = 0.02


@dataclass(frozen=True)
class TransferOptions:
    """What is done to every stage of a plan.

    Attributes:
        codecs: use them where they pay.
        halo_first: in every stage of several devices.
    """

    model: Model
    profile: Profile
    lossy: bool = False
    codecs: bool = False
    halo_first: bool = False
    _known: dict[tuple[int, str, str], str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        with_options, holders = [], {self.profile.source}
        for stage in stages:
            takers = [name for name, rect in stage.regions.items() if rect.row_stop > rect.row_start]
            codecs = self._codecs(stage, sorted(holders), takers) if self.codecs else {}
            first = self.halo_first and len(takers) > 1
            with_options.append(stage.model_copy(update={"codecs": codecs, "halo_first": first}))
            holders |= set(takers)
        return tuple(with_options)

    def matches(self, stages: Sequence[Stage]) -> bool:
        """Whether a plan, as a whole, is dressed like this."""
        codecs, first = any(stage.codecs for stage in stages), any(stage.halo_first for stage in stages)
        return (codecs, first) == (self.codecs, self.halo_first)

    def _codecs(self, stage: Stage, senders: Sequence[str], receivers: Sequence[str]) -> dict[str, str]:
        chosen = {}
        for sender in senders:
            for receiver in receivers:
                if sender != receiver:
                    codec = self._codec(stage.first, sender, receiver)
                    if codec != RAW:
                        chosen[channel_key(sender, receiver)] = codec
        return chosen

    def _codec(self, layer: int, sender: str, receiver: str) -> str:
        key = (layer, sender, receiver)
        if key not in self._known:
            tensors = self.model.cuts[layer].tensors
            self._known[key] = best_codec(self.model, self.profile, tensors, sender, receiver, self.lossy)[0]
        return self._known[key]


def option_sets(model: Model, profile: Profile, objective: Objective) -> list[TransferOptions]:
    """All that may pay; the plain one first."""
    packs = any(device.codecs for device in profile.devices) and bool(profile.codec_ratios)
    return [
        TransferOptions(model, profile, objective.lossy, codecs, borders)
        for codecs in ((False, True) if packs else (False,))
        for borders in (False, True)
    ]


def best_codec(
    model: Model, profile: Profile, tensors: Sequence[str], sender: str, receiver: str, lossy: bool
) -> tuple[str, float]:
    """The codec under which these tensors pass a link soonest, and its seconds per raw byte."""
    link = profile.link(sender, receiver)
    rate = min((link.bytes_per_second, *(m.bytes_per_second for m in profile.media_between(sender, receiver))))
    encoders, decoders = profile.by_name[sender].codecs, profile.by_name[receiver].codecs
    best = (RAW, (1 - LEAST_GAIN) / rate)
    for codec in sorted(encoders.keys() & decoders.keys()):
        if codec in LOSSY and not lossy:
            continue
        packed = total = 0.0
        for name in tensors:
            tensor = model.graph.tensors[name]
            nbytes = tensor.region_nbytes(tensor.whole)
            packed += nbytes * profile.codec_ratios.get(name, {}).get(codec, 1.0)
            total += nbytes
        if not total:
            continue
        work = 1 / encoders[codec].encode_bytes_per_second + 1 / decoders[codec].decode_bytes_per_second
        best = min(best, (codec, packed / total / rate + work), key=lambda found: found[1])
    return (RAW, 1 / rate) if best[0] == RAW else best


def with_effective_rates(model: Model, profile: Profile, lossy: bool) -> Profile:
    """The profile with links as fast as codecs make them on average: what drafts are made by."""
    tensors = list(dict.fromkeys(name for cut in model.cuts[1:] for name in cut.tensors))
    links = []
    for link in profile.links:
        seconds = best_codec(model, profile, tensors, link.sender, link.receiver, lossy)[1]
        links.append(
            Link(
                sender=link.sender, receiver=link.receiver,
                bytes_per_second=max(1 / seconds, link.bytes_per_second), latency_seconds=link.latency_seconds,
            )
        )  # fmt: skip
    faster = {(a.sender, a.receiver): b.bytes_per_second / a.bytes_per_second for a, b in zip(profile.links, links)}
    gain = sum(faster.values()) / max(len(faster), 1)
    media = tuple(m.model_copy(update={"bytes_per_second": m.bytes_per_second * gain}) for m in profile.media)
    return profile.model_copy(update={"links": tuple(links), "media": media})
