"""Tests: oracles in parity, units mirroring the core, contracts between files, several processes, the whole pipeline."""
