"""Every public name with one hostile argument: it works, or the error names the argument."""

import pytest
from fuzz_targets import TABLE
from fuzz_values import named, refused

# They draw figures, or make a strategy for each value; the plugins have the same arguments.
_DEAR = {
    *("MGEM", "MIGU", "HybridMagnitude", "save_checkpoint", "load_checkpoint"),
    *("plot_accuracy", "plot_tradeoff", "text_classifier", "write_report"),
}
ALL = [
    pytest.param(name, marks=pytest.mark.slow if name in _DEAR else ()) for name in sorted(TABLE)
]


@pytest.mark.parametrize("name", ALL)
def test_what_is_right_works(name):
    target = TABLE[name]
    assert refused(target, target.needed()) is None
    for argument, each in target.arguments.items():
        for value in each.good:
            error = refused(target, {**target.needed(), argument: value})
            assert error is None, f"{argument}={value!r}: {error}"


@pytest.mark.parametrize("name", ALL)
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
