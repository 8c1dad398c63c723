"""The version, for the check that all devices run the same."""

VERSION = "0.1.0"
