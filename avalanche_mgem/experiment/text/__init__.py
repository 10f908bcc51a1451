"""Comparisons on text: the stream, the models, and what can be wrong with them."""
