"""The reasons behind a plan: critical path, sensitivities, constraints and unused devices."""
