"""From an operator to its region rule."""

from __future__ import annotations

from coedge.graph import Node
from coedge.rules import elementwise, reduce, resize, shape, window
from coedge.rules.rule import FUNCTIONS, Context, Rule, whole_rule

# Each family registers its operators when it is imported.
FAMILIES = (elementwise, reduce, resize, shape, window)


def rule_for(node: Node, context: Context, restores_rows: bool) -> Rule:
    """The rule of a node. An operator without one, or one that cannot be split here, gets the whole rule.

    Args:
        restores_rows: a later operator reads rows from this output, so it has rows even if this node is whole.
    """
    function = FUNCTIONS.get(node.op) if node.domain == "" else None
    result: Rule | str
    if function is None:
        result = f"no rule for operator {node.domain + '.' if node.domain else ''}{node.op}"
    elif node.captured:
        result = "has an inner graph"
    else:
        result = function(node, context)
    return whole_rule(node, context, result, restores_rows) if isinstance(result, str) else result
