"""Dagster assets: one per row of the pipeline, each running its DVC stage. They name their stage and their upstream assets."""
