"""Region rules: the input regions that an output region of an operator needs, and how a part of it is run."""

from coedge.graph.rules.lookup import rule_for
from coedge.graph.rules.rule import Adjust, Context, Rule

__all__ = ["Adjust", "Context", "Rule", "rule_for"]
