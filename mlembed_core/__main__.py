"""``python -m mlembed_core``: the command line without the console script."""

from mlembed_core.cli import main

main()
