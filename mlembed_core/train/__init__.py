"""The training run: launch, loop, step, optimizer, checkpoints, tracking."""
