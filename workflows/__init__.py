"""How Dagster drives the pipeline: jobs, the sensor that follows DVC, the one ``defs``, and the programs that people start."""
