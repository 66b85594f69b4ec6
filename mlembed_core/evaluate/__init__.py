"""Scores of every submodel through mteb, the controls beside them, and the report."""
