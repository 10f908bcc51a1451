"""The table of docs/combinations.md: each of its cells is so."""

import re
from pathlib import Path

import pytest
from avalanche.training.plugins import GEMPlugin
from avalanche_cases import CASES, run_of
from avalanche_checks import OURS, trained

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"
COLUMNS = list(OURS)
COLUMNS.remove("MGEMPlugin(restrict='update')")
pytestmark = pytest.mark.filterwarnings("ignore")  # Avalanche's own


def cells():
    """Yield (case, ours, cell) for every cell of the page."""
    for line in PAGE.read_text().splitlines():
        if row := re.match(r"\| `(?P<name>[^`]+)`(?P<before>[^|]*)\| (?P<cells>.*) \|$", line):
            words = [cell.split()[0] for cell in row["cells"].split("|")]
            case = row["name"] + (", last" if "in front" in row["before"] else "")
            yield from ((case, ours, word) for ours, word in zip(COLUMNS, words, strict=True))


ALL = list(cells())
GOES = [(case, ours) for case, ours, cell in ALL if cell == "yes"]
TURNS = GOES[:: len(COLUMNS) + 1]


def test_the_page_has_every_case():
    rows = {case.removesuffix(", last") for case, _, _ in ALL}
    assert {case.removesuffix(", last") for case in CASES} == rows
    assert {cell for _, _, cell in ALL} == {"yes", "no", "idle"}


@pytest.mark.parametrize(("case", "ours"), [(c, o) for c, o, cell in ALL if cell == "no"])
def test_no_is_an_error_before_training_that_names_both(case, ours):
    strategy, experiences = run_of(case, [OURS[ours]()])
    before = [parameter.clone() for parameter in strategy.model.parameters()]
    with pytest.raises(ValueError, match=f"{ours} (does not go together|restricts the steps)"):
        strategy.train(experiences[0])
    assert strategy.clock.train_iterations == 0
    assert all((p == b).all() for p, b in zip(strategy.model.parameters(), before, strict=True))


@pytest.mark.parametrize(("case", "ours"), [(c, o) for c, o, cell in ALL if cell == "idle"])
def test_idle_is_to_restrict_nothing(case, ours):
    assert trained(run_of, case, OURS[ours])[1].looked == 0


def check(case, ours):
    look = trained(run_of, case, OURS[ours])[1]
    assert look.wrong == set()
    assert look.looked > 0


@pytest.mark.parametrize(("case", "ours"), TURNS)
def test_yes_is_that_both_hold(case, ours):
    check(case, ours)


@pytest.mark.parametrize("case", ["GEM", "AGEMPlugin"])
def test_with_the_update_restricted_mgem_may_stand_in_front(case):
    check(case, "MGEMPlugin(restrict='update')")


def test_a_plugin_that_is_behind_by_the_order_of_a_list_is_seen():
    """Of two GEMs around it, the one behind is named."""
    strategy, experiences = run_of("GEMPlugin, last", [OURS["MGEMPlugin"]()])
    strategy.plugins.append(GEMPlugin(6, 0.5))
    with pytest.raises(ValueError, match="does not go together with GEMPlugin"):
        strategy.train(experiences[0])


@pytest.mark.slow
@pytest.mark.parametrize(("case", "ours"), GOES)
def test_every_yes_in_both_orders(case, ours):
    kinds = [ours, "MGEMPlugin(restrict='update')"] if ours == "MGEMPlugin" else [ours]
    for kind in kinds:
        check(case, kind)
        if (other := f"{case}, last") in CASES:
            check(other, kind)
