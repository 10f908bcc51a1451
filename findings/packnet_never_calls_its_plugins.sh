#!/usr/bin/env bash
# avalanche-lib 0.6.0: the strategy PackNet takes `plugins`, and calls none of them in training.
#
# It hands on [plugins, PackNetPlugin(...)], a list in a list, and Avalanche's trigger looks for each
# event on the inner list, finds none and goes on. Nothing is said; Naive with a PackNetPlugin calls
# them. Seen:
#   Naive: 2 calls of after_backward
#   PackNet: 0 calls of after_backward
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet avalanche-lib==0.6.0

"$folder/venv/bin/python" -W ignore - >"$folder/seen" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.models.packnet import PackNetModel, PackNetPlugin
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive, PackNet
from torch import nn
from torch.utils.data import TensorDataset


class Counts(SupervisedPlugin):
    calls = 0

    def after_backward(self, strategy, **kwargs):
        self.calls += 1


data = TensorDataset(torch.randn(4, 3), torch.arange(4) % 2)
data.targets = data.tensors[1].tolist()
experience = nc_benchmark(data, data, n_experiences=1, task_labels=True).train_stream[0]
for kind in (Naive, PackNet):
    model = PackNetModel(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    counts = Counts()
    options = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 4,
        "train_epochs": 2,
        "evaluator": EvaluationPlugin(),
    }
    if kind is Naive:
        strategy = Naive(plugins=[counts, PackNetPlugin(1, 0.5)], **options)
    else:
        strategy = PackNet(plugins=[counts], post_prune_epochs=1, prune_proportion=0.5, **options)
    strategy.train(experience)
    print(f"{kind.__name__}: {counts.calls} calls of after_backward")
PYTHON

grep "calls of" "$folder/seen" | tee "$folder/lines"
diff "$folder/lines" - <<'SEEN'
Naive: 2 calls of after_backward
PackNet: 0 calls of after_backward
SEEN
