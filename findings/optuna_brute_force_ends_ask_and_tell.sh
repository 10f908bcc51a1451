#!/usr/bin/env bash
# optuna 5.0.0: with BruteForceSampler, the ask-and-tell loop ends in an error once all is tried.
#
# When nothing is left to try, the sampler calls Study.stop() within tell(), which outside of
# optimize() raises; the trial that was told is complete by then. Other samplers go on, and
# optimize() ends quietly. So a loop that asks and tells must expect a RuntimeError from tell() of
# a result that has been kept. Seen:
#   RandomSampler: 3 told, 3 complete
#   BruteForceSampler: RuntimeError after 1 told, 2 complete
#   BruteForceSampler, optimize(): 2 complete
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet optuna==5.0.0

"$folder/venv/bin/python" -W ignore - >"$folder/seen" 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BruteForceSampler, RandomSampler

space = {"x": CategoricalDistribution(["a", "b"])}
for kind in (RandomSampler, BruteForceSampler):
    study, told = optuna.create_study(sampler=kind()), 0
    error = ""
    try:
        for _ in range(3):
            study.tell(study.ask(space), 0.0)
            told += 1
    except RuntimeError as raised:
        error = f"{type(raised).__name__} after "
    complete = sum(trial.state.name == "COMPLETE" for trial in study.trials)
    print(f"{kind.__name__}: {error}{told} told, {complete} complete")

study = optuna.create_study(sampler=BruteForceSampler())
study.optimize(lambda trial: len(trial.suggest_categorical("x", ["a", "b"])), n_trials=3)
print(f"BruteForceSampler, optimize(): {len(study.trials)} complete")
PYTHON

diff "$folder/seen" - <<'SEEN'
RandomSampler: 3 told, 3 complete
BruteForceSampler: RuntimeError after 1 told, 2 complete
BruteForceSampler, optimize(): 2 complete
SEEN
cat "$folder/seen"
