"""Avalanche on one side, pure functions on tensors on the other."""
