"""The search for a plan: which layers form a stage, which devices take part, and where their strips meet."""
