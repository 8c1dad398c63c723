"""Adaptation while frames run: lasting changes of devices and links, and the profile as it is now."""
