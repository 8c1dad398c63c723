"""The configuration of a cluster: pydantic models of its YAML file, overrides and error positions."""
