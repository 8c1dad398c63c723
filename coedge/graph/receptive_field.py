"""The receptive field of a run of nodes: which part of each input is needed for a part of the outputs.

    wanted outputs            |=====|           rows [2, 5) of the last tensor
    one 3x3 convolution back -|=====|-          rows [1, 6) of the tensor before it
    another one back        --|=====|--         rows [0, 7): what the run reads

One backward pass serves rows alone (`Interval`) and rows with columns (`Region`). The needed part of a tensor is
always a single interval or rectangle: the hull of what its readers need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from coedge.core.region import Interval, Region
from coedge.graph.axis_map import AxisMap
from coedge.graph.graph import Graph
from coedge.graph.rules.rule import Rule, WholeRule

Extent = TypeVar("Extent", Interval, Region)


@dataclass(frozen=True, slots=True)
class BackwardRule(Generic[Extent]):
    """The way in which one node maps a part of its outputs to parts of its inputs.

    Attributes:
        index: position of the node in `graph.nodes`.
        outputs: names of the outputs, without omitted ones.
        whole: the full extent of the outputs, for a node that cannot compute a part of them; otherwise None.
        needs: returns the needed part of every activation that the node reads.
    """

    index: int
    outputs: tuple[str, ...]
    whole: Extent | None
    needs: Callable[[Extent], Mapping[str, Extent]]


class NodeField(NamedTuple, Generic[Extent]):
    """One node of a backward pass: the part of its outputs that is computed, and the parts that it reads for it."""

    rule: BackwardRule[Extent]
    computed: Extent
    reads: Mapping[str, Extent]


def backward_pass(
    rules: Iterable[BackwardRule[Extent]], wanted: Mapping[str, Extent], reads: dict[str, Extent]
) -> Iterator[NodeField[Extent]]:
    """Go from the outputs of a run of nodes back to its inputs.

    Args:
        rules: the rules of the nodes, last node first.
        wanted: the parts that are wanted of the run's outputs. No part is empty. Names that no node of the run
            makes are ignored.
        reads: the parts that nodes behind the run read: empty for a pass that starts at the end of a stage.
            Updated in place. After the pass it holds the part of every tensor that is read and that no node of
            the run makes, so a pass can be continued layer by layer.

    Yields:
        One item per node that takes part. Nodes whose outputs are not needed are skipped.
    """
    for rule in rules:
        computed: Extent | None = None
        for name in rule.outputs:
            for part in (wanted.get(name), reads.pop(name, None)):
                if part is not None:
                    computed = part if computed is None else computed.hull(part)
        if computed is None:
            continue
        computed = rule.whole or computed
        needs = rule.needs(computed)
        for name, part in needs.items():
            reads[name] = reads[name].hull(part) if name in reads else part
        yield NodeField(rule, computed, needs)


def region_rules(graph: Graph, rules: Sequence[Rule]) -> tuple[BackwardRule[Region], ...]:
    """Return the backward rules of all nodes for rows and columns, in the order of `graph.nodes`."""
    return tuple(
        BackwardRule(index, outputs, whole, rules[index].needs)
        for index, (outputs, whole) in enumerate(_outputs(graph, rules))
    )


def row_rules(graph: Graph, rules: Sequence[Rule]) -> tuple[BackwardRule[Interval], ...]:
    """Return the backward rules of all nodes for rows alone, in the order of `graph.nodes`."""
    return tuple(
        BackwardRule(index, outputs, whole and whole.rows, partial(_needed_rows, _row_maps(rules[index])))
        for index, (outputs, whole) in enumerate(_outputs(graph, rules))
    )


def _outputs(graph: Graph, rules: Sequence[Rule]) -> Iterator[tuple[tuple[str, ...], Region | None]]:
    """Yield the named outputs of every node, and their extent if the node cannot compute a part of them."""
    for node, rule in zip(graph.nodes, rules, strict=True):
        outputs = tuple(name for name in node.outputs if name)
        yield outputs, graph.tensors[outputs[0]].whole if isinstance(rule, WholeRule) else None


def _row_maps(rule: Rule) -> tuple[tuple[str, AxisMap], ...]:
    return tuple((name, rows) for name, (rows, _) in rule.maps.items())


def _needed_rows(row_maps: Sequence[tuple[str, AxisMap]], rows: Interval) -> dict[str, Interval]:
    return {name: row_map.needs(rows) for name, row_map in row_maps}
