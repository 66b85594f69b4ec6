"""The Dagster code location: definitions, jobs, sensors, schedules."""
