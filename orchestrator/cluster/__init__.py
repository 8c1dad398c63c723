"""The front door: a cluster that plans and answers."""
