"""Measured and estimated times: profiles, the cost model, reference times and test beds."""
