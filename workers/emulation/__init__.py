"""Slower processors and links, emulated in user space."""
