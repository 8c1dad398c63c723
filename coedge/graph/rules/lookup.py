"""From an operator to its region rule."""

from __future__ import annotations

import dataclasses

from coedge.graph.graph import Node
from coedge.graph.rules import dense, elementwise, reduce, resize, shape, window
from coedge.graph.rules.dense import GatheringRule
from coedge.graph.rules.rule import FUNCTIONS, KNOWS_FEATURES, Context, Rule, WholeRule, whole_rule

# Each family registers its operators when it is imported.
FAMILIES = (dense, elementwise, reduce, resize, shape, window)


def rule_for(node: Node, context: Context, restores_rows: bool) -> Rule:
    """The rule of a node. An operator without one, or one that cannot be split here, gets the whole rule.

    Where a rule does not know features, or cannot be local to them, the node has the rule that it would have if
    its input were one pixel, and gets all features.

    Args:
        restores_rows: a later operator reads rows from this output, so it has rows even if this node is whole.
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
