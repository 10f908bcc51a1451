#!/usr/bin/env bash
# avalanche-lib 0.6.0: MAS raises "Loss is not available" where the loss of a minibatch is zero.
#
# From the second experience on it tests the loss tensor itself, not whether there is one, so that a
# value of exactly 0 counts as none: a hinge loss whose margins are all kept ends the training. On
# a stream that a linear model separates with a margin. Seen:
#   loss 0 in experience 0: trains on
#   loss 0 in experience 1: ValueError: Loss is not available
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet avalanche-lib==0.6.0

"$folder/venv/bin/python" -W ignore - >"$folder/seen" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import MAS
from torch import nn
from torch.utils.data import TensorDataset

labels = torch.arange(40) % 4
data = TensorDataset(5.0 * torch.eye(4)[labels], labels)
data.targets = labels.tolist()
stream = nc_benchmark(data, data, n_experiences=2, task_labels=False, seed=0).train_stream
model = nn.Linear(4, 4)
with torch.no_grad():  # every margin is 5
    model.weight.copy_(torch.eye(4))
    model.bias.zero_()
strategy = MAS(
    model=model,
    optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    criterion=nn.MultiMarginLoss(),
    train_mb_size=10,
    evaluator=EvaluationPlugin(),
)
for number, experience in enumerate(stream):
    try:
        strategy.train(experience)
        print(f"loss {float(strategy.loss):.0f} in experience {number}: trains on")
    except ValueError as error:
        print(f"loss {float(strategy.loss):.0f} in experience {number}: ValueError: {error}")
PYTHON

grep "^loss" "$folder/seen" | tee "$folder/lines"
diff "$folder/lines" - <<'SEEN'
loss 0 in experience 0: trains on
loss 0 in experience 1: ValueError: Loss is not available
SEEN
