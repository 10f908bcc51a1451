"""What an experience must have to be trained on."""

from __future__ import annotations

from avalanche_mgem.bridge.strategy import Strategy


def require_samples(strategy: Strategy) -> None:
    """Raise ValueError for an experience without samples, before Avalanche makes its loader.

    That fails with an error of torch's sampler, which does not tell the experience.
    """
    data = strategy.adapted_dataset
    if hasattr(data, "__len__") and len(data) == 0:
        clock = strategy.clock
        number = getattr(strategy.experience, "current_experience", clock.train_exp_counter)
        raise ValueError(
            f"experience {number} has no sample, which no strategy of Avalanche can train on: "
            "leave it out of the stream"
        )
