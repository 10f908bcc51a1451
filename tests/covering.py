"""Which cases of a grid are enough to see every value of every parameter."""

from collections import defaultdict


def cover(cases):
    """Return the indices of cases that together have every value that any case has.

    Greedy: the case with the most values that no chosen one has, the first of equals.

    Args:
        cases: a mapping {parameter: value} for each case, of values that can be hashed.
    """
    left = {pair for case in cases for pair in case.items()}
    chosen = []
    while left:
        best = max(range(len(cases)), key=lambda index: len(left & cases[index].items()))
        chosen.append(best)
        left -= cases[best].items()
    return sorted(chosen)


def left_to_the_slow_suite(items):
    """Yield the tests marked `cover` that are not needed to see every value of a parameter."""
    grids = defaultdict(list)
    for item in items:
        if item.get_closest_marker("cover") and hasattr(item, "callspec"):
            grids[item.path, item.originalname, item.cls].append(item)
    for grid in grids.values():
        # One value of a parameter is one object in all cases; not all of them can be hashed.
        chosen = cover([{k: id(v) for k, v in item.callspec.params.items()} for item in grid])
        yield from (item for index, item in enumerate(grid) if index not in chosen)
