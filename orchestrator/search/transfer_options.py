"""Transfer options of a plan: packing by a codec, and halo first.

Halo first means that a device computes and sends the rows that another device waits for before the rest of the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from coedge.core.objective import Objective
from coedge.plan.codec import RAW, channel_key
from coedge.plan.plan import Stage
from orchestrator.evaluation.cost_table import CostTable


@dataclass(frozen=True)
class TransferOptions:
    """Transfer options for all stages of a plan.

    Attributes:
        lossy: lossy codecs are allowed.
        codecs: use codecs on the links on which they pay.
        halo_first: use halo first in every stage of several devices.
    """

    table: CostTable
    lossy: bool = False
    codecs: bool = False
    halo_first: bool = False
    _codec_of: dict[tuple[int, int, int], str] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Return the stages with these options."""
        with_options, holders = [], {self.table.profile.source}
        for stage in stages:
            receivers = [name for name, rect in stage.regions.items() if rect.row_stop > rect.row_start]
            codecs = self._codecs(stage, sorted(holders), receivers) if self.codecs else {}
            halo_first = self.halo_first and len(receivers) > 1
            with_options.append(stage.model_copy(update={"codecs": codecs, "halo_first": halo_first}))
            holders |= set(receivers)
        return tuple(with_options)

    def matches(self, stages: Sequence[Stage]) -> bool:
        """Return whether a plan as a whole uses codecs and halo first like this."""
        codecs, halo_first = any(stage.codecs for stage in stages), any(stage.halo_first for stage in stages)
        return (codecs, halo_first) == (self.codecs, self.halo_first)

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
        """Return the codec for the tensors alive before a layer."""
        key = (layer, self.table.position[sender], self.table.position[receiver])
        if key not in self._codec_of:
            tensors = self.table.model.cuts[layer].tensors
            self._codec_of[key] = self.table.codec(tensors, *key[1:], self.lossy)[0]
        return self._codec_of[key]


def option_sets(table: CostTable, objective: Objective) -> list[TransferOptions]:
    """Return all transfer options that may pay, plain transfers first."""
    packs = any(device.codecs for device in table.profile.devices) and bool(table.profile.codec_ratios)
    return [
        TransferOptions(table, objective.lossy, codecs, halo_first)
        for codecs in ((False, True) if packs else (False,))
        for halo_first in (False, True)
    ]


def with_effective_rates(table: CostTable, lossy: bool) -> CostTable:
    """Return the table with links as fast as codecs make them on average, for drafts."""
    model, profile = table.model, table.profile
    tensors = list(dict.fromkeys(name for cut in model.cuts[1:] for name in cut.tensors))
    links, gains = [], []
    for link in profile.links:
        pair = table.position[link.sender], table.position[link.receiver]
        raw, packed = float(table.seconds_per_byte[pair]), table.codec(tensors, *pair, lossy)[1]
        # A link without a rate of its own has only that of a shared medium, or costs nothing.
        gains.append(raw / packed if packed > 0 else 1.0)
        links.append(link.model_copy(update={"bytes_per_second": link.bytes_per_second * gains[-1]}))
    gain = sum(gains) / len(gains) if gains else 1.0
    media = tuple(m.model_copy(update={"bytes_per_second": m.bytes_per_second * gain}) for m in profile.media)
    return table.with_links(profile.model_copy(update={"links": tuple(links), "media": media}))
