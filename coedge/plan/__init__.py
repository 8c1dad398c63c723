"""Plans, and everything that follows from a plan: programs, transfers, codecs and memory."""
