"""Ray: nodes, worker actors, and the death of either."""
