"""The accuracy matrix and its metrics."""
