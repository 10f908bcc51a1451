"""Figures of finished runs and of the theory, drawn with matplotlib."""
