"""Every public name with hostile arguments: it works, or the error names the argument."""

import fuzz_pure
import pytest
from fuzz_values import named, refused

TABLE = {
    **fuzz_pure.RESTRICTION,
    **fuzz_pure.FUNCTIONS,
    **fuzz_pure.MODELS,
    **fuzz_pure.THEORY,
    **fuzz_pure.EVALUATION,
}
NAMES = sorted(TABLE)


@pytest.fixture(autouse=True, scope="module")
def _elsewhere(tmp_path_factory):
    """Paths such as "x" are of a folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        yield


@pytest.mark.parametrize("name", NAMES)
def test_what_is_right_works(name):
    target = TABLE[name]
    assert refused(target, target.needed()) is None
    for argument, each in target.arguments.items():
        for value in each.good:
            error = refused(target, {**target.needed(), argument: value})
            assert error is None, f"{argument}={value!r}: {error}"


@pytest.mark.parametrize("name", NAMES)
def test_one_hostile_argument(name):
    target = TABLE[name]
    wrong = []
    for argument, each in target.arguments.items():
        for label, value in each.hostile().items():
            try:
                error = refused(target, {**target.needed(), argument: value})
            except Exception as other:
                wrong.append(f"{argument}={label}: {type(other).__name__}: {str(other)[:150]}")
                continue
            if error is None and label not in each.may:
                wrong.append(f"{argument}={label}: accepted")
            if error is not None and not named(target, error, [argument]):
                wrong.append(f"{argument}={label}: unnamed: {error!r:.200}")
    assert not wrong, f"{len(wrong)} of {name}\n" + "\n".join(wrong)
