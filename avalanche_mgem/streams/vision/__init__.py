"""Streams of images: permuted, rotated, split, correlated, of domains, with corruptions."""
