"""The front door: the `Cluster` that users connect to, and its cached plans."""
