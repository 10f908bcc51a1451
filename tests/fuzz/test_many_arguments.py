"""Several arguments at once, good, hostile and of any shape: it works, or the error names one."""

import pytest
from fuzz_draws import calls, works_or_says_what_is_wrong
from fuzz_targets import KINDS, TABLE
from hypothesis import given, settings

# Of each kind; a report is half a second of drawing.
NORMAL = [(kind, 60) for kind in KINDS if kind != "report"]
SLOW = [*((kind, 2_000) for kind in KINDS if kind != "report"), ("report", 200)]


@pytest.mark.parametrize(
    ("kind", "cases"), [*NORMAL, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)]
)
def test_it_works_or_says_what_is_wrong(kind, cases, tidy):
    @settings(max_examples=cases)
    @given(calls(KINDS[kind]))
    def holds(call):
        name, arguments = call
        tidy()  # what one case writes, the next does not find
        works_or_says_what_is_wrong(TABLE[name], arguments)

    holds()
