"""How a model's parameters and gradients are addressed; torch only, no Avalanche."""
