"""Comparison of schemes on one cluster: runs in turns, raw samples, and tables made from them."""
