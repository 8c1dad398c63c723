"""Measurements that a worker takes of itself: layer times, activations and the unsplit network."""
