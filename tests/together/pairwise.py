"""Few cases in which every level of every factor meets every level of every other one."""

import itertools


def pairs_of(case):
    """Every pair of a factor's level with another's that a case {factor: level} has."""
    return set(itertools.combinations(sorted(case.items()), 2))


def allowed_pairs(factors, is_allowed):
    """Every pair of levels of two factors that is allowed on its own."""
    levels = sorted((name, level) for name, levels in factors.items() for level in levels)
    return {
        pair
        for pair in itertools.combinations(levels, 2)
        if pair[0][0] != pair[1][0] and is_allowed(dict(pair))
    }


def pairwise_cover(factors, is_allowed=lambda case: True):
    """Return cases {factor: level} that have every allowed pair of levels; always the same ones.

    Greedy: each case begins with a pair that no case has yet, and takes of each further factor the
    level that adds most new pairs; of equal ones, the level that the cases have least.

    Args:
        factors: {factor: [levels]}, all of them texts.
        is_allowed: of a part of a case {factor: level}, whether it may be; what is true of a whole
            must be true of its parts.
    """
    missing = allowed_pairs(factors, is_allowed)
    used = dict.fromkeys(((name, level) for name in factors for level in factors[name]), 0)
    cases = []
    while missing:
        case = dict(min(missing, key=lambda pair: (sum(used[part] for part in pair), pair)))
        for name in sorted(factors.keys() - case.keys(), key=lambda n: (-len(factors[n]), n)):
            choices = [{**case, name: level} for level in factors[name]]
            case = min(
                filter(is_allowed, choices),
                key=lambda c: (-len(pairs_of(c) & missing), used[name, c[name]]),
            )
        missing -= pairs_of(case)
        for part in case.items():
            used[part] += 1
        cases.append({name: case[name] for name in factors})
    return cases
