"""Studies and ratios against peers, each run by one command; they print tables and never assert a time."""
