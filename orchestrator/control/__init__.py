"""Control over Ray: nodes, worker actors, clocks and their failures."""
