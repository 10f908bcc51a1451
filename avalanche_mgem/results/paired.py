"""Two methods compared seed by seed: what both were given is no part of their difference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avalanche_mgem.arguments import as_list, one_of
from avalanche_mgem.results.csv import flat
from avalanche_mgem.results.result import RunResult
from avalanche_mgem.results.statistics import mean_interval, signed_rank_p
from avalanche_mgem.results.summary import (
    by_method,
    by_stream,
    on_validation,
    require_runs,
    scores_and_seconds,
    stream_length,
)

_OF_THE_METHOD = ("strategy", "settings", "whole_stream", "seed", "stream")


@dataclass(frozen=True)
class PairedScore:
    """One score of two methods, A and B, over the seeds that both have.

    All is NaN where the score of a run is; without a pair too.

    Args:
        first: mean of A.
        second: mean of B.
        difference: mean of A - B.
        half_width: of the 95% interval (Student's t) of that mean; NaN for one pair.
        p: of Wilcoxon's signed-rank test, two-sided and exact, see `signed_rank_p`.
    """

    first: float
    second: float
    difference: float
    half_width: float
    p: float


@dataclass(frozen=True)
class PairedComparison:
    """Two methods on one stream, compared over the seeds that both have.

    Args:
        stream: its name.
        first: the method A.
        second: the method B.
        seeds: the pairs.
        diverged: seeds that both have and that are left out, because one of the two runs diverged.
        unpaired: seeds that only one of the methods has.
        scores: by name, as in `RunResult.scores`, and "seconds".
        also_differs: what else than the method is not the same in both, such as
            "training.learning_rate (0.1, 0.01)".
    """

    stream: str
    first: str
    second: str
    seeds: tuple[int, ...]
    diverged: tuple[int, ...]
    unpaired: tuple[int, ...]
    scores: Mapping[str, PairedScore]
    also_differs: tuple[str, ...] = ()

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many pairs can have, 2^(1 - pairs): where all have one sign."""
        return min(1.0, 2.0 ** (1 - len(self.seeds)))


def paired_comparisons(
    results: Sequence[RunResult], paired: Sequence[str]
) -> list[PairedComparison]:
    """Compare two methods, A - B, on every stream that has runs of both.

    Where both have scores on validation data, a comparison of these follows that of the stream.

    Runs of one seed have the same stream and initial model. Their difference therefore varies less
    than the scores do, and tells methods apart where two separate intervals overlap.

    Args:
        results: runs of one or several streams, such as `load_results` returns.
        paired: the names of the two methods, A and B.

    Raises:
        ValueError: paired is something else than two names that are there, has no stream or no seed
            in common, or holds runs of one seed on streams that differ; what `summary.by_method`
            refuses.

    Example:
        >>> (comparison,) = paired_comparisons(load_results("mgem-compare"), ("gem", "ewc"))
        >>> difference, p = comparison.scores["acc"].difference, comparison.scores["acc"].p
    """
    require_runs(results)
    first, second = _two_names(results, paired)
    comparisons = []
    for of_stream in by_stream(results).values():
        for runs in filter(None, (of_stream, on_validation(of_stream))):
            groups = by_method(runs)
            if first in groups and second in groups:
                comparisons.append(_compare(first, groups[first], second, groups[second]))
    if not comparisons:
        raise ValueError(f"paired: {first!r} and {second!r} have no stream in common")
    return comparisons


def _two_names(results: Sequence[RunResult], paired: Sequence[str]) -> tuple[str, str]:
    names = as_list("paired", paired, str, what="two names of methods")
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"paired must be the names of two methods, got {names}")
    choices = list(dict.fromkeys(run.method for run in results))
    return one_of("paired", names[0], choices), one_of("paired", names[1], choices)


def _compare(
    first: str, of_first: Sequence[RunResult], second: str, of_second: Sequence[RunResult]
) -> PairedComparison:
    stream = of_first[0].stream
    stream_length(f"{first} and {second}", [*of_first, *of_second])
    ours, theirs = ({run.seed: run for run in runs} for runs in (of_first, of_second))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise ValueError(
            f"paired: {first!r} and {second!r} have no seed in common on stream {stream!r}, got "
            f"{sorted(ours)} and {sorted(theirs)}"
        )
    for seed in common:
        _require_one_stream(ours[seed], theirs[seed])
    seeds = [seed for seed in common if ours[seed].diverged is None is theirs[seed].diverged]
    pairs = [(ours[seed], theirs[seed]) for seed in seeds]
    return PairedComparison(
        stream,
        first,
        second,
        seeds=tuple(seeds),
        diverged=tuple(seed for seed in common if seed not in seeds),
        unpaired=tuple(sorted(ours.keys() ^ theirs.keys())),
        scores=_scores(pairs) if pairs else _no_scores(ours[common[0]]),
        also_differs=tuple(sorted({text for pair in pairs for text in _differences(*pair)})),
    )


def _scores(pairs: Sequence[tuple[RunResult, RunResult]]) -> dict[str, PairedScore]:
    values = [(scores_and_seconds(ours), scores_and_seconds(theirs)) for ours, theirs in pairs]
    return {
        name: _score([(ours[name], theirs[name]) for ours, theirs in values])
        for name in values[0][0]
    }


def _score(values: Sequence[tuple[float, float]]) -> PairedScore:
    differences = [ours - theirs for ours, theirs in values]
    mean, half_width = mean_interval(differences)
    if math.isnan(mean):
        return PairedScore(*[math.nan] * 5)
    first, second = (mean_interval(each)[0] for each in zip(*values, strict=True))
    return PairedScore(first, second, mean, half_width, signed_rank_p(differences))


def _no_scores(run: RunResult) -> dict[str, PairedScore]:
    return dict.fromkeys(scores_and_seconds(run), PairedScore(*[math.nan] * 5))


def _require_one_stream(ours: RunResult, theirs: RunResult) -> None:
    one, other = (run.configuration.get("stream", {}) for run in (ours, theirs))
    if one != other:
        told = ", ".join(_unequal(flat("stream", one), flat("stream", other)))
        raise ValueError(
            f"paired: the runs of seed {ours.seed} of {ours.method!r} and {theirs.method!r} are "
            f"of streams that differ under one name, {ours.stream!r}: {told}; name them apart, as "
            "load_results does"
        )


def _differences(ours: RunResult, theirs: RunResult) -> Iterator[str]:
    """Yield what else than the method, the seed and the stream differs."""
    one, other = ({**_leaves(run), **flat("versions", run.versions)} for run in (ours, theirs))
    # A method may need packages that another does not.
    shared = {name for name in one | other if not name.startswith("versions.")}
    shared |= one.keys() & other.keys()
    yield from _unequal(*({k: v for k, v in each.items() if k in shared} for each in (one, other)))


def _leaves(run: RunResult) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in run.configuration.items():
        if name not in _OF_THE_METHOD:
            leaves |= flat(name, value)
    return leaves


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*one, *other}):
        texts = [_shown(each[name]) if name in each else "default" for each in (one, other)]
        if texts[0] != texts[1]:
            yield f"{name} ({texts[0]}, {texts[1]})"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=repr)
