"""A plan: the part of the network that each device produces, stage by stage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from pydantic import Field

from coedge.core.errors import PlanError
from coedge.core.json_file import load_json, save_json
from coedge.core.record import Record
from coedge.core.region import UNIT, UnitRect, check_cover
from coedge.graph.layers import Layer
from coedge.graph.model import Model
from coedge.plan.codec import check_codecs


class Prediction(Record):
    """The predicted cost of a plan, for one frame at a time.

    Attributes:
        throughput_fps: rate of a stream with enough frames in flight, limited by the busiest device or link.
        bound_seconds: the divisible-load bound: the latency if the work could be divided arbitrarily.
    """

    latency_seconds: float
    energy_joules: float
    throughput_fps: float
    bound_seconds: float | None = None


class Stage(Record):
    """Layers `first` to `last` (inclusive), and the share of their results that each device produces.

    Devices do not communicate inside a stage. Each recomputes the overlap that its share needs. Of each tensor that
    is alive at the end of the stage, a device owns the pixels of its rectangle.

    Attributes:
        halo_first: each share is computed in portions. Rows that other devices wait for are computed and sent first,
            and the interior does not wait for fetched rows (see `coedge.plan.halo_first`).
        codecs: how the rows that this stage fetches are packed, by "sender>receiver"; raw where a channel is not
            named (see `coedge.plan.codec`). The answer is sent unpacked.
    """

    first: int = Field(ge=0)
    last: int = Field(ge=0)
    regions: dict[str, UnitRect]
    halo_first: bool = False
    codecs: dict[str, str] = Field(default={})


class Plan(Record):
    """A list of stages. Transfers are not planned; they follow from the regions (see `coedge.plan.lowering`).

    Attributes:
        source: the device that has the input.
        sink: the device that assembles the output.
        feasible: whether the prediction meets the objective's constraints.
        reason: why the plan is infeasible, or why the scheme chose it.
    """

    scheme: str
    model_name: str
    model_hash: str
    devices: tuple[str, ...]
    source: str
    sink: str
    stages: tuple[Stage, ...]
    feasible: bool = True
    reason: str = ""
    predicted: Prediction | None = None

    @cached_property
    def digest(self) -> str:
        """A hash of the work that the plan describes. Predictions and reasons do not count."""
        work = self.model_dump_json(exclude={"predicted", "reason", "feasible", "scheme"})
        return hashlib.blake2b(work.encode(), digest_size=8).hexdigest()

    @property
    def used_devices(self) -> tuple[str, ...]:
        """The devices that have a share of some stage."""
        shares = [(name, rect) for stage in self.stages for name, rect in stage.regions.items()]
        names = {name for name, rect in shares if rect.row_stop > rect.row_start and rect.col_stop > rect.col_start}
        return tuple(name for name in self.devices if name in names)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Plan:
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("digest", None)  # the copy would keep the digest of the original
        return copied

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        save_json(self, path)

    @classmethod
    def load(cls, path: str | Path, model: Model | None = None) -> Plan:
        """Read a plan, and check that it fits if a model is given.

        Raises:
            PlanError: the file is not a plan, or the plan is for another model.
        """
        plan = load_json(cls, path, "plan")
        if model is not None:
            check_plan(plan, model)
        return plan

    def __str__(self) -> str:
        lines = [f"plan {self.scheme} for {self.model_name}, {self.source} -> {self.sink}"]
        if self.predicted:
            lines[0] += (
                f": {self.predicted.latency_seconds * 1e3:.1f} ms, {self.predicted.energy_joules:.3f} J predicted"
            )
        if not self.feasible:
            lines.append(f"  infeasible: {self.reason}")
        for start, stop, stage in stage_runs(self.stages):
            count = stop - start
            label = f"stage {start}" if count == 1 else f"stages {start}-{stop - 1}"
            layers = f"layers {self.stages[start].first}-{self.stages[stop - 1].last}"
            shares = ", ".join(
                f"{name} {share}" for name, share in ((n, _share(r)) for n, r in stage.regions.items()) if share
            )
            options = [", halo first"] if stage.halo_first else []
            options += [f", {codec} packed" for codec in sorted(set(stage.codecs.values()))]
            lines.append(f"  {label:14s} {layers:16s} {shares}{''.join(options)}")
        return "\n".join(lines)


def _share(rect: UnitRect) -> str:
    rows, cols = rect.row_stop - rect.row_start, rect.col_stop - rect.col_start
    if rows * cols <= 0:
        return ""
    if (rect.col_start, rect.col_stop) == (0, 1):
        return "all" if rows == 1 else f"{rect.row_start:.1%}..{rect.row_stop:.1%}"
    return f"{rect.row_start:.0%}..{rect.row_stop:.0%} x {rect.col_start:.0%}..{rect.col_stop:.0%}"


def stage_runs(stages: Sequence[Stage]) -> list[tuple[int, int, Stage]]:
    """Return runs of consecutive stages that differ in their layers only, as (start, stop, last stage)."""
    runs: list[tuple[int, int, Stage]] = []
    for index, stage in enumerate(stages):
        if runs and _all_but_layers(runs[-1][2]) == _all_but_layers(stage):
            runs[-1] = (runs[-1][0], index + 1, stage)
        else:
            runs.append((index, index + 1, stage))
    return runs


def _all_but_layers(stage: Stage) -> tuple[object, ...]:
    """Return what a stage has besides its layers."""
    return stage.regions, stage.halo_first, sorted(set(stage.codecs.values()))


def check_plan(plan: Plan, model: Model) -> None:
    """Check that a plan fits its model.

    Raises:
        PlanError: the first thing that does not fit.
        InputError: the model is none.
    """
    Model.check(model)
    if not isinstance(plan, Plan):
        raise PlanError(f"a plan is what coedge.make_plan returns; a {type(plan).__name__} was given")
    if plan.model_hash != model.hash:
        raise PlanError(
            f"the plan is for model {plan.model_name!r} ({plan.model_hash}), "
            f"this is {model.name!r} ({model.hash}); make a plan for this model"
        )
    if len(set(plan.devices)) != len(plan.devices):
        raise PlanError(f"the plan names a device twice: {', '.join(plan.devices)}")
    for role, name in (("source", plan.source), ("sink", plan.sink)):
        if name not in plan.devices:
            raise PlanError(f"the {role} {name!r} is not one of the plan's devices: {', '.join(plan.devices)}")
    expected = 0
    for position, stage in enumerate(plan.stages):
        if stage.first != expected or stage.last < stage.first:
            raise PlanError(
                f"stage {position} covers layers {stage.first} to {stage.last}; it must begin with layer {expected}"
            )
        expected = stage.last + 1
        unknown = [name for name in stage.regions if name not in plan.devices]
        if unknown:
            raise PlanError(
                f"stage {position} names device {unknown[0]!r}, which is not one of: {', '.join(plan.devices)}"
            )
        try:
            check_cover(stage.regions.values())
            check_codecs(stage.codecs, plan.devices)
        except PlanError as error:
            raise PlanError(f"stage {position}: {error}") from None
    if expected != len(model.layers):
        raise PlanError(f"the stages cover {expected} layers, the model has {len(model.layers)}")


def strips(shares: Mapping[str, float]) -> dict[str, UnitRect]:
    """Return horizontal strips, from the top down, proportional to the shares. The sum of the shares is arbitrary."""
    total = sum(shares.values())
    edges, passed = [0.0], 0.0
    for share in shares.values():
        passed += share
        edges.append(passed / total)
    edges[-1] = 1.0
    # Rounding errors must not leave a gap at the end, also if the last devices have no share.
    return {name: UnitRect(row_start=min(a, 1.0), row_stop=min(b, 1.0)) for name, a, b in zip(shares, edges, edges[1:])}


def stages_of(
    model: Model,
    regions: Mapping[str, UnitRect],
    alone: str,
    stage_layers: int = 1,
    dense: Mapping[str, UnitRect] | None = None,
) -> tuple[Stage, ...]:
    """Return stages of `stage_layers` layers each. Layers that cannot be split are computed by the device `alone`.

    Args:
        dense: the share of the output features that each device makes of dense layers. Each of these layers is a
            stage of its own. Without it, `alone` computes them as well.
    """

    def place(layer: Layer) -> tuple[int, dict[str, UnitRect]]:
        if layer.splittable:
            return -1, dict(regions)
        # Within one stage, every device would have to compute all features that the next layer reads.
        return (layer.index, dict(dense)) if layer.by_features and dense else (-2, {alone: UNIT})

    stages: list[Stage] = []
    first = 0
    for layer in model.layers:
        after = model.layers[layer.index + 1] if layer.index + 1 < len(model.layers) else None
        full = layer.index - first + 1 >= stage_layers
        kind, chosen = place(layer)
        if after is None or full or place(after)[0] != kind:
            stages.append(Stage(first=first, last=layer.index, regions=chosen))
            first = layer.index + 1
    return tuple(stages)


def _check_arguments(devices: Any, boundaries: Any, grid: Any, stage_layers: Any, source: Any) -> None:
    """Check the types of the arguments of `even_plan`.

    Raises:
        PlanError: one is something else; shows what is needed.
    """

    def sequence(value: Any, kind: Any) -> bool:
        plain = isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping))
        return plain and all(isinstance(one, kind) for one in value)

    for name, value, fits, needed in (
        ("devices", devices, isinstance(devices, Integral) or sequence(devices, str), "a number or a list of names"),
        ("boundaries", boundaries, boundaries is None or sequence(boundaries, Real), "a list of numbers"),
        ("grid", grid, grid is None or (sequence(grid, Integral) and len(grid) == 2), "two whole numbers"),
        ("stage_layers", stage_layers, isinstance(stage_layers, Integral), "a whole number"),
        ("source", source, source is None or isinstance(source, str), "the name of a device"),
    ):
        if not fits:
            raise PlanError(f"{name} is {value!r:.100}; give {needed}")


def even_plan(
    model: Model,
    devices: int | Sequence[str] = 4,
    boundaries: Sequence[float] | None = None,
    grid: tuple[int, int] | None = None,
    stage_layers: int = 1,
    source: str | None = None,
    split_dense: bool = False,
) -> Plan:
    """Return a plan with equal strips, given strips or a grid, the same in every stage. It needs no profile.

    Args:
        devices: the number of devices (`device-0`, ...), or their names.
        boundaries: where the strips meet, from 0 to 1: `devices - 1` inner ones, or these with 0 and 1 at the ends.
        grid: (rows, columns) of a grid. It also gives the number of devices if `devices` is not a list of names.
        stage_layers: layers per stage.
        source: the device that has the input and assembles the output; the first device by default.
        split_dense: whether dense layers are split by output features, with the boundaries or in equal parts.
            Otherwise they run on one device.

    Raises:
        PlanError: the arguments do not fit each other.
        InputError: the model is none.
    """
    Model.check(model)
    _check_arguments(devices, boundaries, grid, stage_layers, source)
    if stage_layers < 1:
        raise PlanError(f"stage_layers is {stage_layers}; a stage has at least one layer")
    if grid is not None and isinstance(devices, int):
        devices = grid[0] * grid[1]
    if isinstance(devices, int):
        if devices < 1:
            raise PlanError(f"{devices} devices were asked for; a plan has at least one")
        devices = [f"device-{i}" for i in range(devices)]
    names = list(devices)
    if not names:
        raise PlanError("a plan has at least one device; an empty list was given")
    if grid is not None:
        if boundaries is not None:
            raise PlanError("give boundaries or a grid, not both")
        high, wide = grid
        if high < 1 or wide < 1 or high * wide != len(names):
            raise PlanError(f"a grid of {high} x {wide} does not fit {len(names)} devices")
        regions = {
            name: UnitRect((i // wide) / high, (i // wide + 1) / high, (i % wide) / wide, (i % wide + 1) / wide)
            for i, name in enumerate(names)
        }
    elif boundaries is None:
        regions = strips(dict.fromkeys(names, 1.0))
    else:
        edges = list(boundaries)
        if len(edges) == len(names) - 1:
            edges = [0.0, *edges, 1.0]
        if len(edges) != len(names) + 1 or edges != sorted(edges) or edges[0] != 0 or edges[-1] != 1:
            raise PlanError(
                f"boundaries {list(boundaries)} do not make {len(names)} strips: give {len(names) - 1} "
                "ascending numbers between 0 and 1"
            )
        regions = {name: UnitRect(a, b) for name, a, b in zip(names, edges, edges[1:])}
    alone = max(names, key=lambda n: regions[n].row_stop - regions[n].row_start)
    source = source or names[0]
    # Features have no columns: in a grid, the devices of the first column would compute all of them.
    dense = (strips(dict.fromkeys(names, 1.0)) if grid else regions) if split_dense else None
    plan = Plan(
        scheme="even", model_name=model.name, model_hash=model.hash, devices=tuple(names),
        source=source, sink=source, stages=stages_of(model, regions, alone, stage_layers, dense),
    )  # fmt: skip
    check_plan(plan, model)
    return plan
