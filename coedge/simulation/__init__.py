"""Programs in virtual time: the simulator, timelines, critical paths and their pictures."""
