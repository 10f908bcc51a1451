"""What the keys of finished runs are made of stays, and is told without heavy imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_mgem.experiment import MLPFactory, NamedStream, Training, find_method
from avalanche_mgem.experiment.configuration import RunSpecification

# As they were before strategies were named without being imported. A method whose strategy does
# something else now has another description, and its line here changes.
FROZEN = json.loads(Path(__file__).with_name("descriptions.json").read_text())


@pytest.mark.parametrize("name", FROZEN)
def test_a_method_is_described_as_ever(name):
    stream = NamedStream("permuted-digits", {"n_experiences": 2})
    run = RunSpecification(find_method(name), stream, 0, MLPFactory(), Training())
    described = run.description()
    assert {part: described[part] for part in FROZEN[name]} == FROZEN[name]
    assert ("whole_stream" in described) == ("whole_stream" in FROZEN[name])


def test_a_key_is_made_without_avalanche_or_torch():
    code = (
        "import sys\n"
        "from avalanche_mgem.experiment import MLPFactory, NamedStream, Training, find_method\n"
        "from avalanche_mgem.experiment.configuration import RunSpecification\n"
        "stream = NamedStream('permuted-digits', {'n_experiences': 2})\n"
        "for name in sys.argv[1:]:\n"
        "    RunSpecification(find_method(name), stream, 0, MLPFactory(), Training()).key\n"
        "print({'avalanche', 'torch', 'transformers', 'peft'} & set(sys.modules))\n"
    )
    call = [sys.executable, "-c", code, *FROZEN]
    output = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert output == "set()\n"
