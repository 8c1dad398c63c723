"""What one device does for one frame (its program), and the pure machine that decides which step comes next."""
