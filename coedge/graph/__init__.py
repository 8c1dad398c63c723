"""The graph of a network: capture, region rules, layers, tiles and weight slices."""
