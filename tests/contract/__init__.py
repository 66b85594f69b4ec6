"""Contracts: the graph, the imports and the documents tell the truth."""
