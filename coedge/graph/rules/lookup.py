"""Lookup of the region rule of a node."""

from __future__ import annotations

import dataclasses

from coedge.graph.graph import Node
from coedge.graph.rules import dense, elementwise, reduce, resize, shape, window
from coedge.graph.rules.dense import GatheringRule
from coedge.graph.rules.rule import FUNCTIONS, KNOWS_FEATURES, Context, Rule, WholeRule, whole_rule

# Importing a family registers its operators.
FAMILIES = (dense, elementwise, reduce, resize, shape, window)


def rule_for(node: Node, context: Context, restores_rows: bool) -> Rule:
    """Return the rule of a node. An operator that has no rule or cannot be split here gets the whole rule.

    If a rule does not handle features, or is not local in them, the node gets the rule of an input of one pixel, and
    reads all features.

    Args:
        restores_rows: a later operator reads rows of the output, so the output has rows even if this node is whole.
    """
    flowing = [n for n in dict.fromkeys((*node.inputs, *node.captured)) if n and not context.is_constant(n)]
    featured = {n: context.tensors[n] for n in flowing if context.tensors[n].features}
    if not featured:
        result = _find(node, context)
        return whole_rule(node, context, result, restores_rows) if isinstance(result, str) else result
    if node.op in KNOWS_FEATURES and not any(context.tensors[n].spatial for n in flowing):
        result = _find(node, context)
        if not isinstance(result, str):
            return dataclasses.replace(result, features=True)
    pixels = {name: tensor.as_pixel() for name, tensor in featured.items()}
    result = _find(node, dataclasses.replace(context, tensors={**context.tensors, **pixels}))
    if isinstance(result, (str, WholeRule)):
        return whole_rule(node, context, result if isinstance(result, str) else result.why, restores_rows)
    return GatheringRule.around(result, {name: tensor.rows for name, tensor in featured.items()})


def _find(node: Node, context: Context) -> Rule | str:
    function = FUNCTIONS.get(node.op) if node.domain == "" else None
    if function is None:
        return f"no rule for operator {node.domain + '.' if node.domain else ''}{node.op}"
    return "has an inner graph" if node.captured else function(node, context)
