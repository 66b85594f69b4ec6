"""Rows from raw text to the memory-mapped training cache, and the sampler that draws batches from it."""
