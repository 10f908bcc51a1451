"""Save a strategy after an experience and resume from there, in another process, to the bit.

Example::

    strategy, start = load_checkpoint(strategy, "run.ckpt")
    for experience in stream.train_stream[start:]:
        strategy.train(experience)
        strategy.eval(stream.test_stream)
        save_checkpoint(strategy, "run.ckpt")
"""

from avalanche_mgem.checkpoint.errors import CheckpointError
from avalanche_mgem.checkpoint.loading import load_checkpoint
from avalanche_mgem.checkpoint.saving import save_checkpoint

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]
