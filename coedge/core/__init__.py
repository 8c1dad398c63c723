"""Errors, regions, objectives and small helpers. Imports no other part of CoEdge."""
