"""Checkpoints in the forms that other libraries load."""
