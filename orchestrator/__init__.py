"""The centre: planning, profiling, jobs."""
