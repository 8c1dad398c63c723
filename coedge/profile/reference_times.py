"""Measured layer times of the zoo on one machine, shipped with the package, and estimates for any other model.

    a model of the zoo            the measured times of its layers
    a layer of a measured kind    the time of the most similar layer, scaled by the work per row
    any other layer               the cost model that is fitted to all measured layers
    a layer inside a stage        the time at the end of a stage, less what a border costs, unless it is measured

`python -m benchmarks.reference` repeats the measurement.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field

from coedge.core.errors import PlanError
from coedge.core.json_file import load_json
from coedge.core.package_data import REFERENCE_TIMES
from coedge.core.record import Record
from coedge.graph.model import Model
from coedge.profile.border_saving import BorderSaving, fit_border_saving
from coedge.profile.cost_model import CostModel, fit_cost_model
from coedge.profile.estimate_error import EstimateError
from coedge.profile.layer_work import LayerCost, layer_costs
from coedge.profile.profile import CodecSpeed, LayerTime

# Of nine networks that neither the estimate nor its design knew, as measured and converted to the reference machine. It
# contains the error of the conversion, and an earlier fit of what stage borders cost. Reference networks that are left
# out of the fit are estimated better: see `docs/explanation/cost-model.md`.
ESTIMATE_ERROR = EstimateError(median=0.20, p95=0.45)


class Affine(NamedTuple):
    """A `LayerTime` as a short JSON array."""

    fixed_seconds: float
    seconds_per_row: float

    @property
    def time(self) -> LayerTime:
        return LayerTime(fixed_seconds=self.fixed_seconds, seconds_per_row=self.seconds_per_row)


class ReferenceLayer(Record):
    """A measured layer.

    Attributes:
        layer: time of the layer at the end of a stage.
        fused: time of the layer where the next layer runs in the same stage.
        codec_ratios: packed bytes over raw bytes, by codec, of each tensor that leaves the layer, in order.
    """

    cost: LayerCost
    layer: Affine
    fused: Affine
    codec_ratios: tuple[dict[str, float], ...] = ()


class ReferenceModel(Record):
    """A measured network of the zoo.

    Attributes:
        name: name in the zoo.
        input_shape, input_dtype: shape and type of its one input.
        machine: description of the machine, for people.
        codecs: speeds at which the machine packs and unpacks.
        input_codec_ratios: packed bytes over raw bytes of the input, by codec.
    """

    name: str
    input_shape: tuple[int, ...]
    input_dtype: str
    machine: dict[str, str]
    layers: tuple[ReferenceLayer, ...]
    codecs: dict[str, CodecSpeed] = Field(default={})
    input_codec_ratios: dict[str, float] = Field(default={})

    @property
    def seconds(self) -> float:
        """Time of one frame on the machine with all layers in one stage."""
        rows = [layer.cost.rows for layer in self.layers]
        return one_stage_seconds([x.layer.time for x in self.layers], [x.fused.time for x in self.layers], rows)


@dataclass(frozen=True)
class ReferenceTimes:
    """Layer times of a model on the reference machine.

    Attributes:
        layers, fused: as in `DeviceProfile`.
        seconds: time of one frame with all layers in one stage.
        like: the network of the zoo with the same layers, at any size; None if there is none.
        measured, scaled, modelled: how many layer times are measured, scaled from a similar layer, or predicted by
            the cost model.
        codecs, codec_ratios: as in `DeviceProfile` and `Profile`; empty if not known.
        machine_speed: speed of the machine that measured the layers, if that is not the reference machine, whose speed
            is 1.
    """

    layers: tuple[LayerTime, ...]
    fused: tuple[LayerTime, ...]
    seconds: float
    like: str | None
    measured: int
    scaled: int
    modelled: int
    codecs: Mapping[str, CodecSpeed] = field(default_factory=dict)
    codec_ratios: Mapping[str, dict[str, float]] = field(default_factory=dict)
    machine_speed: float | None = None

    @property
    def error(self) -> EstimateError | None:
        """The error of the estimate. None: the layers were measured, here or at another size of the image."""
        return ESTIMATE_ERROR if self.estimated and self.like is None else None

    @property
    def estimated(self) -> bool:
        """True if some layers were not measured."""
        return self.scaled + self.modelled > 0

    def __str__(self) -> str:
        """Return where the times come from, for people."""
        counts = (
            (self.measured, "measured"),
            (self.scaled, "scaled from measured ones of their kind"),
            (self.modelled, "from a regression over all measured layers"),
        )
        words = ", ".join(f"{count} of {len(self.layers)} layers {how}" for count, how in counts if count)
        machine = "the reference machine"
        if self.machine_speed is not None:
            machine = f"this machine, which has {self.machine_speed:.2f} times the speed of the reference machine"
        return f"layer times of {self.like or 'another network'} on {machine}: {words}"


@functools.cache
def reference_models() -> Mapping[str, ReferenceModel]:
    """Return the measurements that ship with the package, by name in the zoo."""
    loaded = [load_json(ReferenceModel, path, "reference profile") for path in sorted(REFERENCE_TIMES.glob("*.json"))]
    return {model.name: model for model in loaded}


def reference_times(model: Model, references: Mapping[str, ReferenceModel] | None = None) -> ReferenceTimes:
    """Return the measured or estimated layer times of a model on the reference machine.

    Args:
        references: measured networks; those that ship with the package by default.

    Raises:
        PlanError: there is no measured network.
        InputError: the model is none.
    """
    known = reference_models() if references is None else references
    if not known:
        raise PlanError(f"there is no reference profile in {REFERENCE_TIMES}; make one: python -m benchmarks.reference")
    costs = layer_costs(model)
    like = _same_structure(model.name, costs, known)
    if like is not None:
        sources: list[ReferenceLayer | None] = list(like.layers)
    else:
        by_kind: dict[str, list[ReferenceLayer]] = {}
        for layer in (layer for reference in known.values() for layer in reference.layers):
            by_kind.setdefault(layer.cost.kind, []).append(layer)
        sources = [_most_similar(cost, by_kind.get(cost.kind, ())) for cost in costs]
    ends, inside = _shipped_cost_models() if references is None else _cost_models(known)
    pairs = list(zip(sources, costs))
    measured = sum(source is not None and _same_work(source.cost, cost) for source, cost in pairs)
    modelled = sources.count(None)
    layers = tuple(_scaled(s.layer, s.cost, cost, ends) if s else ends.time(cost) for s, cost in pairs)
    if like is not None:
        fused = tuple(_scaled(s.fused, s.cost, cost, inside) if s else inside.time(cost) for s, cost in pairs)
    else:
        saving = _shipped_saving() if references is None else _saving(known)
        fused = tuple(map(saving.fused, layers, costs))
    return ReferenceTimes(
        layers=layers,
        fused=fused,
        seconds=one_stage_seconds(layers, fused, [cost.rows for cost in costs]),
        like=like.name if like else None,
        measured=measured,
        scaled=len(costs) - measured - modelled,
        modelled=modelled,
        codecs=next((r.codecs for r in known.values() if r.codecs), {}),
        codec_ratios=_codec_ratios(model, like) if like else {},
    )


def one_stage_seconds(layers: Sequence[LayerTime], fused: Sequence[LayerTime], rows: Sequence[int]) -> float:
    """Return the time of all layers in one stage on one device."""
    times = [*fused[:-1], layers[-1]]
    return sum(time.seconds(count) for time, count in zip(times, rows, strict=True))


def _same_structure(
    name: str, costs: Sequence[LayerCost], references: Mapping[str, ReferenceModel]
) -> ReferenceModel | None:
    """Return the measured network with the same kinds of layers; weights, size and node names do not count.

    Operators before the first convolution (normalisation, a uint8 input) are not part of a kind, so networks of the
    zoo are recognised with and without them.
    """
    kinds = [cost.kind for cost in costs]
    equal = [r for r in references.values() if [layer.cost.kind for layer in r.layers] == kinds]
    return next((r for r in equal if r.name == name), equal[0] if equal else None)


def _most_similar(cost: LayerCost, known: Sequence[ReferenceLayer]) -> ReferenceLayer | None:
    """Return the layer with the most similar work, among layers of one kind.

    A kind without multiplications says little about the work. There only a layer with the same work is returned.
    """

    def distance(layer: ReferenceLayer) -> float:
        other = layer.cost
        adds = math.log(other.multiply_adds / other.rows * cost.rows / cost.multiply_adds)
        return abs(adds) + abs(math.log((other.moved_nbytes + 1) / (cost.moved_nbytes + 1)))

    if cost.multiply_adds:
        return min((layer for layer in known if layer.cost.multiply_adds), key=distance, default=None)
    return next((layer for layer in known if _same_work(layer.cost, cost)), None)


def _same_work(known: LayerCost, cost: LayerCost) -> bool:
    """Return whether two layers do the same work. Operators before the first convolution do not count."""
    same_adds = (known.rows, known.multiply_adds) == (cost.rows, cost.multiply_adds)
    return same_adds and (cost.multiply_adds > 0 or known.moved_nbytes == cost.moved_nbytes)


def _scaled(time: Affine, known: LayerCost, cost: LayerCost, model: CostModel) -> LayerTime:
    """Return the time of a layer of the same kind and another size.

    For layers with multiplications, the fixed time stays and the time per row grows with the work per row. For other
    layers, both times are scaled by the ratio that the cost model predicts.
    """
    if _same_work(known, cost):
        return time.time
    if known.multiply_adds and cost.multiply_adds:
        ratio = (cost.multiply_adds / cost.rows) / (known.multiply_adds / known.rows)
        return LayerTime(fixed_seconds=time.fixed_seconds, seconds_per_row=time.seconds_per_row * ratio)
    ratio = model.time(cost).seconds(cost.rows) / max(model.time(known).seconds(known.rows), 1e-9)
    return LayerTime(
        fixed_seconds=time.fixed_seconds * ratio,
        seconds_per_row=time.seconds_per_row * ratio * known.rows / cost.rows,
    )


def _cost_models(references: Mapping[str, ReferenceModel]) -> tuple[CostModel, CostModel]:
    """Return the cost models of layers at the end of a stage, and of layers inside a stage."""
    layers = [layer for reference in references.values() for layer in reference.layers]
    return (
        fit_cost_model((layer.cost, layer.layer.time) for layer in layers),
        fit_cost_model((layer.cost, layer.fused.time) for layer in layers),
    )


@functools.cache
def _shipped_cost_models() -> tuple[CostModel, CostModel]:
    return _cost_models(reference_models())


def _saving(references: Mapping[str, ReferenceModel]) -> BorderSaving:
    """Return what layers save inside stages."""
    networks = []
    for known in references.values():
        costs = [layer.cost for layer in known.layers]
        apart = [layer.layer.time.seconds(layer.cost.rows) for layer in known.layers]
        networks.append((costs, apart, known.seconds))
    return fit_border_saving(networks)


@functools.cache
def _shipped_saving() -> BorderSaving:
    return _saving(reference_models())


def _codec_ratios(model: Model, like: ReferenceModel) -> dict[str, dict[str, float]]:
    """Return the codec ratios by tensor.

    Tensors are matched by position, because their names depend on the version of the exporter.
    """
    image = model.inputs[0]
    known = like.input_codec_ratios and image.dtype == like.input_dtype
    ratios = {image.name: like.input_codec_ratios} if known else {}
    for index, layer in enumerate(like.layers):
        ratios.update(zip(leaving(model, index), layer.codec_ratios))
    return ratios


def leaving(model: Model, index: int) -> tuple[str, ...]:
    """Return the tensors that a layer makes and that later layers or the outputs need, in the order of their nodes."""
    layer = model.layers[index]
    later = {n for node in model.graph.nodes[layer.stop :] for n in model.graph.activations(node)}
    later |= set(model.graph.outputs)
    made = (name for node in model.graph.nodes[layer.first : layer.stop] for name in node.outputs)
    return tuple(name for name in made if name in later)
