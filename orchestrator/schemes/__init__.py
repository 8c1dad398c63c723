"""The planning schemes, one file each. A scheme is a function of a model, a profile and an objective."""
