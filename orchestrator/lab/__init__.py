"""The lab: a host of its own for every device of a configuration, on one machine, with shaped links between them."""
