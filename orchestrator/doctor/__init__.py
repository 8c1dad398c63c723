"""The examination of a cluster and of its machines: facts, what they mean, and what mends it."""
