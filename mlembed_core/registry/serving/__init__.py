"""One model behind HTTP, with every one of its submodels: ``mlembed serve``."""
