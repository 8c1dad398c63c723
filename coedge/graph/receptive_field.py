"""The receptive field of a run of nodes: which part of each input is needed for a part of the outputs.

    wanted outputs            |=====|           rows [2, 5) of the last tensor
    one 3x3 convolution back -|=====|-          rows [1, 6) of the tensor before it
    another one back        --|=====|--         rows [0, 7): what the run reads

One backward pass serves both rows alone (`Interval`) and rows with columns (`Region`). A part is always a single
interval or rectangle: where two readers need different parts of a tensor, their hull is needed.
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
    """How one node maps a part of its outputs to parts of its inputs.

    Attributes:
        index: position of the node in `graph.nodes`.
        outputs: names of the outputs, without omitted ones.
        whole: the full extent of the outputs, for a node that is computed as a whole or not at all; otherwise None.
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
        wanted: the parts that are wanted of the run's outputs, none of them empty. Names that no node of the run
            makes are ignored.
        reads: what is read behind the run; updated in place. When the pass ends, it holds the part of every tensor
            that the run reads and does not make. Empty for a pass that starts at the run's end; handed on where a
            pass is continued layer by layer.

    Yields:
        One item per node that takes part. Nodes of whose outputs nothing is needed are skipped.
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
        BackwardRule(node.index, outputs, whole, rule.needs)
        for node, rule in zip(graph.nodes, rules, strict=True)
        for outputs, whole in [_outputs(graph, node.outputs, rule)]
    )


def row_rules(graph: Graph, rules: Sequence[Rule]) -> tuple[BackwardRule[Interval], ...]:
    """Return the backward rules of all nodes for rows alone, in the order of `graph.nodes`."""
    return tuple(
        BackwardRule(
            node.index,
            outputs,
            None if whole is None else whole.rows,
            partial(_needed_rows, tuple((name, rows) for name, (rows, _) in rule.maps.items())),
        )
        for node, rule in zip(graph.nodes, rules, strict=True)
        for outputs, whole in [_outputs(graph, node.outputs, rule)]
    )


def _outputs(graph: Graph, names: Sequence[str], rule: Rule) -> tuple[tuple[str, ...], Region | None]:
    outputs = tuple(name for name in names if name)
    return outputs, graph.tensors[outputs[0]].whole if isinstance(rule, WholeRule) else None


def _needed_rows(row_maps: Sequence[tuple[str, AxisMap]], rows: Interval) -> dict[str, Interval]:
    return {name: row_map.needs(rows) for name, row_map in row_maps}
