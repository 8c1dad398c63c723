"""The graph of a network: region rules, layers, tiles and weight slices."""
