"""The predicted cost of a plan, and the lower bound beside it."""
