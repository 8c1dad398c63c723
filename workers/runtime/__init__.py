"""One device at work: the worker's loop, its kernels and its energy meter."""
