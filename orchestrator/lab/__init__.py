"""The lab: every device of a configuration as a host of its own on one machine, with shaped links between them."""
