"""Mistakes are told without waiting for Avalanche or torch, which take seconds to import."""

import json
import subprocess
import sys

import pytest

HEAVY = ["avalanche", "torch", "torchvision", "sklearn", "scipy", "matplotlib", "transformers"]
# Each in one process, one after the other: what is imported for one is seen at all that follow.
CASES = {
    "compare --help": "--methods-file",
    "compare --list": "mgem-pd",
    "theory --help": "--shared-norm",
    "compare --methods foo": "unknown method 'foo'",
    "compare --methods replay+foo": "unknown method 'foo'",
    "compare --methods naive+migu": "'naive' is no plugin",
    "compare --methods gem,gem": "'gem' is named twice",
    "compare --methods-file nowhere.toml": "nowhere.toml",
    "compare --set gem": "METHOD.SETTING=VALUE",
    "compare --methods gem --set naive.a=1": "'naive' is not among the methods",
    "compare --set mgem-d.memory_group=2": "did you mean 'memory_groups'",
    "compare --set mgem-d.memory_groups=two": "mgem-d.memory_groups must be a whole number",
    "compare --methods mgem-p --set mgem-p.solver=exat": "mgem-p.solver: unknown 'exat'",
    "compare --set migu.mask_fraction=1": "migu.mask_fraction must be a number in [0, 1)",
    "compare --methods hybrid --set hybrid.mode=adaptiv": "did you mean 'adaptive'",
    "compare --methods lora+migu --set lora+migu.rank=0": "lora+migu.rank must be",
    "compare --methods lora+migu --set lora+migu.seed=1": "name lora.seed or migu.seed",
    "compare --set ewc.ewc_lambda=abc": "ewc.ewc_lambda must be a finite number",
    "compare --methods mgem-d --memory 4": "needs at least 8 patterns per experience",
    "compare --methods agem --memory 4": "must be at least the number of experiences",
    "compare --stream foo": "stream='foo' is unknown",
    "compare --stream permuted-digit": "did you mean 'permuted-digits'",
    "compare --stream permuted-digits+nois": "corruption: unknown 'nois'",
    "compare --stream split:nowhere/": "found none at nowhere",
    "compare --stream split:no.npz": "found none at no.npz",
    "compare --stream split-mnist --data-root no --no-download": "data_root='no' does not exist",
    "compare --stream domains-digit-five --data-root no --no-download": "5 of 5 domains",
    "compare --stream domains-digit-five --domains mnist,usp": "did you mean 'usps'",
    "compare --stream split-digits --experiences 11": "more than the 10 classes",
    "compare --stream split-digits --class-order 1,x": "class_order as text",
    "compare --stream correlated-digits --shared-classes 2": "shared_classes is a share",
    "compare --stream split-digits --task-labels": "task_labels: with heads='single'",
    "compare --experiences 0": "experiences must be",
    "compare --train-per-experience 0": "train_per_experience must be",
    "compare --image-size 0": "image_size must be",
    "compare --seeds 0": "seeds must be",
    "compare --seeds many": "Invalid value",
    "compare --jobs 0": "jobs must be",
    "compare --epochs 0": "epochs must be",
    "compare --memory 0": "memory must be",
    "compare --eval-every 0": "eval_every must be",
    "compare --momentum 1": "momentum must be below 1",
    "compare --precision fp8": "precision: unknown 'fp8'",
    "compare --accumulate 0": "accumulate must be a whole number >= 1",
    "compare --accumulate 11": "accumulate=11 needs a batch_size of at least 11, got batch_size=10",
    "compare --clip 0": "clip must be a finite number > 0",
    "compare --schedule cosin": "did you mean 'cosine'",
    "compare --augment": "augment: crops and flips mean nothing where pixels are permuted",
    "compare --augment --stream rotated-digits": "augment needs images of at least 16 x 16",
    "compare --augment --stream text --model x": "augment is for images",
    "compare --learning-rate nan": "learning_rate must be",
    "compare --optimizer sdg": "did you mean 'sgd'",
    "compare --device gpu": "device must be a torch device such as 'cpu'",
    "compare --model resnet": "did you mean 'slim-resnet18'",
    "compare --model no_such_module:factory": "there is no module 'no_such_module'",
    "compare --hidden a,b": "hidden must be widths",
    "compare --heads many": "heads: unknown 'many'",
    "compare --order 1": "is of text only",
    "compare --out notes.txt": "notes.txt is a file",
    "compare --nonsense": "No such option",
    "compare --stream text": "model is needed for text",
    "compare --stream text --model x --order 7": "order: unknown '7'",
    "compare --stream text --model x --order 1 --tasks yelp": "give one of them",
    "compare --stream text --model x --tasks foo": "tasks: unknown 'foo'",
    "compare --stream text --model x --form foo": "form: unknown 'foo'",
    "compare --stream text --model x --data-root nowhere": "folder='nowhere' does not exist",
    "compare --stream text --model ./nowhere": "'./nowhere' is no folder",
    "compare --stream text --model x --experiences 2": "the stream text has no such option",
    "sweep --help": "--sampler-seed",
    "sweep --trials 0": "trials must be a whole number >= 1",
    "sweep --methods foo": "unknown method 'foo'",
    "sweep --objective acc,foo": "objective: unknown 'foo'",
    "sweep --objective acc,la,bwt": "objective must be one or two scores",
    "sweep --methods joint --objective bwt": "joint is trained once on the whole stream",
    "sweep --sampler tpee": "did you mean 'tpe'",
    "sweep --pruner wilcoxon": "pruner='wilcoxon' needs one objective, got la,bwt",
    "sweep --sampler-seed -1": "sampler_seed must be",
    "sweep --seeds 0": "seeds must be",
    "sweep --space nowhere.toml": "space nowhere.toml: cannot be read",
    "sweep --methods mgem-d --memory 8": "space: mgem-d refuses memory_groups=16",
    "sweep --methods gem --set gem.memory_strength=None": "settings: gem.memory_strength must be",
    "sweep --jobs 0": "jobs must be",
    "sweep --out notes.txt": "notes.txt is a file",
    "report nowhere": "no results folder nowhere: it does not exist",
    "report .": "is no results folder",
    "theory --p2 3": "p2 must be > n + 1",
    "theory --runs 1": "runs must be",
}
CODE = """
import json, sys
from typer.testing import CliRunner
from avalanche_mgem.cli import app
heavy, cases = json.loads(sys.argv[1])
told = {}
for case in cases:
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, case.split())
    told[case] = result.exit_code, result.output, sorted(set(heavy) & set(sys.modules))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Exit code, output and heavy imports of each case."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "notes.txt").write_text("mine")
    call = [sys.executable, "-c", CODE, json.dumps([HEAVY, list(CASES)])]
    output = subprocess.run(call, capture_output=True, text=True, check=True, cwd=folder).stdout
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    return json.loads(output)


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_before_anything_heavy_is_imported(told, case):
    code, output, imported = told[case]
    assert CASES[case] in output
    assert imported == []
    assert code == (0 if "--help" in case or "--list" in case else 2 if "Usage" in output else 1)
