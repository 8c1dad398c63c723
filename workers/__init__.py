"""The devices: what runs on each machine of a cluster."""
