"""The runtime of the client: loading plans, dispatching frames, streams, trials and diagnosis."""
