"""Plans, mixtures of plans and Pareto fronts for a model, a profile and an objective."""
