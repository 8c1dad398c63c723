"""Frames under way: loading plans, dispatching jobs, streams and diagnosis."""
