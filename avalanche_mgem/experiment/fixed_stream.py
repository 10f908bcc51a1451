"""A benchmark that is at hand, as the stream of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from avalanche_mgem.arguments import as_text

_STREAMS = ("train", "test")


class FixedStream:
    """A stream that is the same for all seeds: a benchmark of Avalanche's that is at hand.

    `compare(stream=benchmark)` makes one. Seeds decide the models and the training only; data that
    is to differ by seed needs a function of the seed. Called, it returns the benchmark, completed
    where heads and strategies need more than it tells, see `complete_scenario`.

    Finished runs are known by what the data sets hold: every sample is read once for a comparison,
    as training and evaluation see it, with a fixed random state. That takes about as long as the
    data loading of an epoch; `version` saves it.

    Args:
        scenario: with a train_stream and a test_stream of as many experiences.
        name: for people, and part of what runs are known by.
        version: what runs are known by, in place of what the samples are: change it whenever they
            change. None: the samples are read.

    Raises:
        ValueError: scenario is no such benchmark; a name or version that is no text.
    """

    def __init__(
        self, scenario: Any, name: str = "benchmark", *, version: str | None = None
    ) -> None:
        self.name = as_text("name", name, what="a name of the stream")
        self.version = None if version is None else as_text("version", version)
        # Imported here, because Avalanche takes seconds to import, and whoever has one has it.
        from avalanche_mgem.streams.benchmarks import complete_scenario

        self._scenario = complete_scenario(scenario)
        self._digest: str | None = None

    def __call__(self, seed: int) -> Any:
        """Return the benchmark, whatever the seed."""
        return self._scenario

    def description(self) -> dict[str, Any]:
        """Return what runs are known by, as JSON values."""
        described = {"type": "FixedStream", "name": self.name}
        if self.version is not None:
            return {**described, "version": self.version}
        if self._digest is None:
            self._digest = _digest(self._scenario)
        return {**described, "sha256": self._digest}

    def __repr__(self) -> str:
        return f"FixedStream(name={self.name!r}, version={self.version!r})"


def as_stream(stream: Any) -> Callable[[int], Any]:
    """Return a stream of a comparison, a function of the seed; of a benchmark, a `FixedStream`."""
    if callable(stream):
        made: Callable[[int], Any] = stream
        return made
    if not any(hasattr(stream, f"{name}_stream") for name in _STREAMS):
        raise ValueError(
            f"stream must be a function of a seed or an Avalanche scenario, got {stream!r}"
        )
    return FixedStream(stream)


def _digest(scenario: Any) -> str:
    from avalanche.training.determinism.rng_manager import RNGManager

    from avalanche_mgem.checkpoint.samples import contents_digest
    from avalanche_mgem.model.randomness import preserved_random_state

    with preserved_random_state():
        RNGManager.set_random_seeds(0)  # transforms may draw
        return contents_digest(_contents(scenario))


def _contents(scenario: Any) -> Iterator[Any]:
    """Yield every sample as it is trained on or tested, and some training samples as tested."""
    for name in _STREAMS:
        for experience in getattr(scenario, f"{name}_stream"):
            plain, count = experience.dataset.eval(), len(experience.dataset)
            views = (experience.dataset.train(), plain) if name == "train" else (plain, plain)
            yield [name, count]
            yield from (views[0][i] for i in range(count))
            yield from (views[1][i] for i in sorted({0, count // 2, count - 1}))
