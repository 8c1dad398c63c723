"""The program of a device for one frame, and the pure scheduler that chooses the next step."""
