"""MLflow's registry: what is registered, under which alias, and how it is found again."""
