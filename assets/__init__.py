"""The pipeline's stages as Dagster assets: one asset a stage, each run by DVC. Imports none of the heavy libraries."""
