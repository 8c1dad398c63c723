"""Branch and bound over all plans of strips (see `benchmarks.enumeration`).

Partial plans are extended in the order of a lower bound on the cost of every plan that starts with them. A complete
plan is simulated. The search ends when no bound is below the cost of the best simulated plan.

For a partial plan the bound uses the earliest time at which each strip of its last stage is ready. Kernels take the
times of the profile. The messages of a device leave one after another in the order of the receivers, and arrive one
after another. Messages of different stages do not delay each other, which can only lower the bound. For the remaining
stages the bound uses, for each strip, the cheapest way to the answer: all receivers of the strip must be served, and
the way may differ from strip to strip.

With a deadline, seconds also have a price (Lagrangian relaxation): cost + price (latency - deadline) is at most the
cost of every plan that meets the deadline, for any price. The highest bound over several prices is used.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.enumeration import every_layout, stage_of
from coedge.core.objective import Objective
from coedge.core.region import Region
from coedge.execution.program import Work
from coedge.graph.model import Model
from coedge.plan.plan import Stage
from coedge.plan.tiles import tile_of
from coedge.profile.profile import Profile
from orchestrator.evaluation.evaluator import Evaluation, Evaluator

Array = NDArray[np.float64]
Ints = NDArray[np.int64]
# Relative tolerance below which two bounds count as equal: rounding errors.
NOISE = 1e-9
# Prices of a second, relative to the least cost over the deadline.
PRICES = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Step:
    """The stages on layouts B that may follow layouts A, whose rows lie at the cut before layer `first`.

    Attributes:
        stops, layouts: [B] end of the stage, and index of its layout; the last B is the answer.
        compute: [B, N] seconds of its kernels.
        wire: [A, B, N, N] seconds of the messages from each device to each other.
        begins: [A, B, N, N] seconds from a sender being ready until its message starts to arrive; -inf: none.
        keeps: [A, B, N] whether a device reads rows that it computed itself.
        joules: [A, B] energy.
    """

    stops: Ints
    layouts: Ints
    compute: Array
    wire: Array
    begins: Array
    keeps: NDArray[np.bool_]
    joules: Array


class Space:
    """The plans of strips of a chain whose layers have the same number of rows."""

    def __init__(self, model: Model, profile: Profile, rows: int) -> None:
        if any(len(cut.tensors) != 1 for cut in model.cuts[1:]) or any(layer.rows != rows for layer in model.layers):
            raise ValueError("only chains whose layers all have the same number of rows can be searched")
        if profile.joules != "dynamic" or profile.media:
            raise ValueError("only profiles without shared media whose joules are `dynamic` can be searched")
        self.model, self.profile, self.rows = model, profile, rows
        self.count, self.names = len(model.layers), profile.names
        self.layouts = every_layout(len(self.names), rows)
        self.source = self.names.index(profile.source)
        edges = np.array(self.layouts)
        self.start, self.stop = edges[:, :-1], edges[:, 1:]
        # Index of the layout with all rows on the source.
        self.alone = int(np.argmax((self.stop - self.start)[:, self.source] == rows))
        self.steps = [self._step(first) for first in range(self.count + 1)]

    def stages(self, path: Sequence[tuple[int, int]]) -> tuple[Stage, ...]:
        """Return the stages of a plan given as (stop, layout) pairs."""
        firsts = [0, *(stop for stop, _ in path)]
        return tuple(stage_of(self.names, self.layouts[m], i, stop) for i, (stop, m) in zip(firsts, path))

    def _step(self, first: int) -> Step:
        if first == self.count:
            # The sink receives the whole answer.
            alone = np.array([self.alone])
            none = np.zeros((1, len(self.names)))
            return self._moved(first, np.array([first + 1]), alone, none, self.start[alone], self.stop[alone])
        stops = np.repeat(np.arange(first + 1, self.count + 1), len(self.layouts))
        layouts = np.tile(np.arange(len(self.layouts)), self.count - first)
        shape = (len(stops), len(self.names))
        seconds, above, below = np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        tiles: dict[tuple[int, int, int], tuple[Region, list[Work]]] = {}
        for at, device in np.ndindex(shape):
            top, bottom = int(self.start[layouts[at], device]), int(self.stop[layouts[at], device])
            if top == bottom:
                continue
            key = (int(stops[at]), top, bottom)
            if key not in tiles:
                tiles[key] = self._tile(first, *key)
            region, work = tiles[key]
            above[at, device], below[at, device] = region.rows.start, region.rows.stop
            seconds[at, device] = self.profile.devices[device].compute_seconds(work)
        return self._moved(first, stops, layouts, seconds, above, below)

    def _tile(self, first: int, stop: int, top: int, bottom: int) -> tuple[Region, list[Work]]:
        """Return the region that a strip of a stage reads, and its work."""
        layers, tensors = self.model.layers, self.model.graph.tensors
        made = tensors[layers[stop - 1].tensor]
        wanted = {made.name: Region(top, bottom, 0, made.cols)}
        tile, need = tile_of(self.model, layers[first].first, layers[stop - 1].stop, wanted)
        work = [Work(x.index, need[x.tensor].area / x.cols) for x in layers[first:stop] if x.tensor in need]
        return need[tile.inputs[0]], work

    def _moved(self, first: int, stops: Ints, layouts: Ints, seconds: Array, above: Ints, below: Ints) -> Step:
        tensor = self.model.graph.tensors[
            self.model.graph.inputs[0] if first == 0 else self.model.layers[first - 1].tensor
        ]
        before = np.array([self.alone]) if first == 0 else np.arange(len(self.layouts))
        top = np.maximum(self.start[before][:, None, :, None], above[None, :, None, :])
        bottom = np.minimum(self.stop[before][:, None, :, None], below[None, :, None, :])
        read = np.maximum(bottom - top, 0)
        here = np.eye(len(self.names), dtype=bool)
        rate, latency = np.ones(here.shape), np.zeros(here.shape)
        for (a, sender), (b, receiver) in itertools.permutations(enumerate(self.names), 2):
            link = self.profile.link(sender, receiver)
            rate[a, b], latency[a, b] = link.bytes_per_second, link.latency_seconds
        wire = read * ~here * (tensor.region_nbytes(tensor.whole) / tensor.rows) / rate
        begins = np.where(wire > 0, np.cumsum(wire, axis=3) - wire + latency, -np.inf)
        power = [device.power for device in self.profile.devices]
        watts = np.array([p.transmit_watts for p in power])[:, None] + np.array([p.receive_watts for p in power])[None]
        joules = (wire * watts).sum(axis=(2, 3)) + (seconds @ np.array([p.compute_watts for p in power]))[None]
        keeps = np.moveaxis(read[:, :, here], -1, -1) > 0
        return Step(stops, layouts, seconds, wire, begins, keeps, joules)


def after(step: Step, layout: int, ready: Array) -> Array:
    """Return, as [B, N], the earliest times at which the strips of the next stage are ready; -inf for unused devices.

    Args:
        layout: layout of the stage before, whose strips are ready at `ready` [N].
    """
    begins = step.begins[layout] + np.where(np.isfinite(ready), ready, 0.0)[:, None]
    order = begins.argsort(axis=1)
    begins = np.take_along_axis(begins, order, axis=1)
    wire = np.take_along_axis(step.wire[layout], order, axis=1)
    came = np.full(begins[:, 0].shape, -np.inf)
    for sender in range(begins.shape[1]):
        came = np.maximum(came, begins[:, sender]) + wire[:, sender]
    return np.maximum(came, np.where(step.keeps[layout], ready, -np.inf)) + step.compute


def remaining(space: Space, second: float, joule: float) -> list[Array]:
    """Return, per cut as [layout, N], the least cost of the rest of a plan from when a strip is ready."""
    sets, devices = len(space.layouts), len(space.names)
    left = [np.zeros((sets, devices)) for _ in range(space.count + 2)]
    for first in range(space.count, -1, -1):
        step = space.steps[first]
        onwards = np.stack([left[stop][m] for stop, m in zip(step.stops, step.layouts)])
        reached = second * step.compute + onwards
        # Maximum over the receivers of the strip, which may include the device itself.
        on_wire = step.wire > 0
        came = np.where(on_wire, step.begins, 0.0) + step.wire
        sent = np.where(on_wire, second * came + reached[None, :, None, :], -np.inf)
        kept = np.where(step.keeps, reached[None], -np.inf)
        through = np.maximum(sent.max(axis=3), kept) + joule * step.joules[:, :, None]
        least = through.min(axis=1)
        left[first] = np.broadcast_to(least, (sets, devices)) if first == 0 else least
    return left


class _Bounds:
    """Lower bounds on the cost of all plans that extend a partial one."""

    def __init__(self, space: Space, objective: Objective) -> None:
        self.space, self.deadline = space, objective.deadline_seconds
        self.second, self.joule = _prices(objective)
        # (price of a second, remaining cost at that price)
        self.priced = [(self.second, remaining(space, self.second, self.joule))]
        if self.deadline is not None:
            self.time = remaining(space, 1.0, 0.0)
            least = self.priced[0][1][0][0, space.source]
            for part in PRICES:
                price = self.second + part * least / self.deadline
                self.priced.append((price, remaining(space, price, self.joule)))

    def below(self, step: Step, joules: Array, ready: Array) -> Array:
        """Return the bound of each B, as [B], given the joules spent so far; infinite if the deadline cannot be met."""
        found = np.full(len(joules), -np.inf)
        for price, left in self.priced:
            late = (price - self.second) * (self.deadline or 0.0)
            found = np.maximum(found, self.joule * joules + _latest(step, price, ready, left) - late)
        if self.deadline is not None:
            found[_latest(step, 1.0, ready, self.time) > self.deadline * (1 + NOISE)] = np.inf
        return found


def _latest(step: Step, price: float, ready: Array, left: list[Array]) -> Array:
    """Return, as [B], the maximum over the strips of the price of the ready time plus the remaining cost."""
    onwards = np.stack([left[stop][layout] for stop, layout in zip(step.stops, step.layouts)])
    has = np.isfinite(ready)
    latest: Array = np.where(has, price * np.where(has, ready, 0.0) + onwards, -np.inf).max(axis=1)
    return latest


@dataclass(frozen=True)
class Best:
    """The outcome of a search.

    Attributes:
        evaluated: the best plan that meets the deadline, or None if none was found.
        bound: lower bound on the cost of all plans; the cost of `evaluated` if the search was completed.
    """

    evaluated: Evaluation | None
    bound: float


def best_by_bound(evaluator: Evaluator, rows: int, most: int) -> Best:
    """Return the best of all plans for the evaluator's objective.

    Args:
        rows: number of rows of every layer.
        most: maximum number of partial plans to extend.
    """
    space, objective = Space(evaluator.model, evaluator.profile, rows), evaluator.objective
    bounds = _Bounds(space, objective)
    ties = itertools.count()
    # (bound, tie breaker, children in the order of their bounds, index of the next child)
    heap: list[tuple[float, int, _Children, int]] = []

    def expand(first: int, layout: int, ready: Array, spent: float, path: tuple[tuple[int, int], ...]) -> None:
        step = space.steps[first]
        then, joules = after(step, layout, ready), spent + step.joules[layout]
        below = bounds.below(step, joules, then)
        order = np.argsort(below, kind="stable")
        heapq.heappush(heap, (float(below[order[0]]), next(ties), _Children(step, below, order, then, joules, path), 0))

    start = np.full(len(space.names), -np.inf)
    start[space.source] = 0.0
    expand(0, 0, start, 0.0, ())
    best, limit = None, np.inf
    while heap and heap[0][0] < limit * (1 - NOISE):
        below, _, children, number = heapq.heappop(heap)
        at = children.order[number]
        if number + 1 < len(children.order):
            following = float(children.bounds[children.order[number + 1]])
            heapq.heappush(heap, (following, next(ties), children, number + 1))
        stop, layout = int(children.step.stops[at]), int(children.step.layouts[at])
        if stop > space.count:
            evaluated = evaluator.evaluate(space.stages(children.path))
            cost = objective.cost(evaluated.latency_seconds, evaluated.energy_joules)
            if objective.meets_deadline(evaluated.latency_seconds) and cost < limit:
                best, limit = evaluated, cost
            continue
        most -= 1
        if most < 0:
            return Best(best, below)
        expand(stop, layout, children.ready[at], float(children.joules[at]), (*children.path, (stop, layout)))
    return Best(best, limit)


@dataclass(frozen=True)
class _Children:
    """The extensions of one partial plan."""

    step: Step
    bounds: Array
    order: Ints
    ready: Array
    joules: Array
    path: tuple[tuple[int, int], ...]


def _prices(objective: Objective) -> tuple[float, float]:
    """Return the prices of a second and of a joule."""
    return (0.0, 1.0) if objective.goal == "energy" else (1.0, objective.energy_weight)
