"""Schemes side by side on one cluster: turns, raw samples, and the rows that follow from them."""
