"""The version of the package. All devices of a cluster must run the same one."""

VERSION = "0.1.0"
