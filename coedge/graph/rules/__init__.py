"""Region rules: which input region does an output region of an operator need, and how is a part of it run."""

from coedge.graph.rules.lookup import rule_for
from coedge.graph.rules.rule import Adjust, Context, Rule

__all__ = ["Adjust", "Context", "Rule", "rule_for"]
