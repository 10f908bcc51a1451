"""The loss on tokens, as a criterion of Avalanche's strategies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avalanche_mgem.arguments import real_tensor


class TokenLogits(Tensor):
    """The output of a model for some tokens of a batch, and what they should be.

    As a tensor it has the scores [B, C + 1] of the B texts, without a gradient, so that what counts
    right answers while training (Avalanche's accuracy metrics) has something to count. The loss is
    taken of its attributes by `TokenLoss`.

    logits: [N, V], for the N tokens of the batch that have a target. targets: int64 [N].
    """

    logits: Tensor
    targets: Tensor
    # What is computed from the scores is a plain tensor, not one of these without its attributes.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, logits: Tensor, targets: Tensor, scores: Tensor) -> TokenLogits:
        """Make it of the tokens' logits and targets, and of the texts' scores."""
        for name, given in (("logits", logits), ("targets", targets), ("scores", scores)):
            real_tensor(name, given)
        made = Tensor._make_subclass(cls, scores.detach())
        made.logits, made.targets = logits, targets
        return made


class TokenLoss(nn.Module):
    """The mean cross entropy over the tokens that have a target, in float32.

    The criterion for `TextToText`, `CausalAnswers` and `MaskedLanguageModel`. Where these answer by
    generation, in evaluation, there are no logits: the loss is then the share of wrong answers.
    """

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of TokenLogits, or of the scores [B, C + 1] of generated answers.

        labels: the classes [B], which only the second needs. Without a single token the loss is 0.

        Raises:
            ValueError: a label that the scores have no class for, or the output of another model.
        """
        if isinstance(output, TokenLogits):
            logits = output.logits.float()
            if len(logits) == 0:
                return logits.sum()
            return nn.functional.cross_entropy(logits, output.targets)
        if not isinstance(output, Tensor) or output.ndim != 2 or output.requires_grad:
            raise ValueError(
                "TokenLoss is for TextToText, CausalAnswers and MaskedLanguageModel; for the "
                "logits of classes take torch.nn.CrossEntropyLoss"
            )
        n_classes = output.shape[1] - 1
        if int(labels.max()) >= n_classes:
            raise ValueError(
                f"the stream has the class {int(labels.max())}, but label_words has words for "
                f"{n_classes} classes only: label_words_of(scenario) has all"
            )
        return 1 - output.gather(1, labels.unsqueeze(1)).float().mean()
