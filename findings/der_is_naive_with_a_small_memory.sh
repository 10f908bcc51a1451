#!/usr/bin/env bash
# avalanche-lib 0.6.0: DER with a memory smaller than its minibatch trains as Naive, to the bit.
#
# Before an experience it replays only if the memory holds at least batch_size_mem samples, which is
# train_mb_size unless it is said; else neither the distillation nor the replay loss is added, and
# nothing is told. Largest difference between the parameters of DER and Naive after two experiences,
# with minibatches of 10. Seen:
#   mem_size=9: 0
#   mem_size=10: more than 0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet avalanche-lib==0.6.0

"$folder/venv/bin/python" -W ignore - >"$folder/seen" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import DER, Naive
from torch import nn
from torch.utils.data import TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 4)
data.targets = data.tensors[1].tolist()
stream = nc_benchmark(data, data, n_experiences=2, task_labels=False, seed=0).train_stream


def trained(kind, **settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    strategy = kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        evaluator=EvaluationPlugin(),
        **settings,
    )
    for experience in stream:
        torch.manual_seed(5)  # the same order of the samples
        strategy.train(experience)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


naive = trained(Naive)
for size in (9, 10):
    apart = float((trained(DER, mem_size=size) - naive).abs().max())
    print(f"mem_size={size}: {'more than 0' if apart else '0'}")
PYTHON

grep "^mem_size" "$folder/seen" | tee "$folder/lines"
diff "$folder/lines" - <<'SEEN'
mem_size=9: 0
mem_size=10: more than 0
SEEN
