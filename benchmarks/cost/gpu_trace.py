"""What a training step asks of the device: kernel launches, synchronisations and their causes.

The profiler counts calls of the CUDA runtime inside the watched steps, and names the operator in
which the host waits; torch's synchronisation debug mode names the line of Python that it comes
from. On a CPU there is neither, and only numbers that are read one by one are counted.
"""

from __future__ import annotations

import bisect
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

STEP = "watched step"
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
_COPIES = ("cudaMemcpy",)  # cudaMemcpyAsync among them
_WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
)
_READS = "aten::_local_scalar_dense"  # what .item(), float() and bool() of a tensor end in
_WARNING = "called a synchronizing CUDA operation"
_NAMED_CAUSES = 6
_PACKAGES = ("avalanche_mgem", "avalanche", "cost")


@dataclass(frozen=True)
class Span:
    """One event on the host, in microseconds."""

    name: str
    start: float
    end: float


@dataclass
class Counts:
    """What steps asked for, a step; None: not to be had on this device.

    operators: synchronisations by the operator in which the host waited.
    lines: synchronising calls by the line that made them.
    """

    launches: float | None = None
    copies: float | None = None
    synchronisations: float | None = None
    reads: float = 0.0
    operators: dict[str, float] = field(default_factory=dict)
    lines: dict[str, float] = field(default_factory=dict)


class Watch:
    """Follows steps, each in `with watch.step():`, between `start` and `finish`."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_cuda
        self._profiler = profile(activities=activities)

    def start(self) -> None:
        """Begin."""
        self._profiler.start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Take what happens here to be one step."""
        with record_function(STEP):
            yield

    def finish(self) -> Counts:
        """End, and return what was counted, a step."""
        self._profiler.stop()
        spans = [
            Span(event.name, event.time_range.start, event.time_range.end)
            for event in self._profiler.events() or ()
            if event.device_type == DeviceType.CPU
        ]
        return count(spans, self._on_cuda)


def count(spans: Sequence[Span], on_cuda: bool) -> Counts:
    """Count what lies in the watched steps, a step."""
    steps = [span for span in spans if span.name == STEP]
    within = [
        span
        for span in spans
        if span.name != STEP and any(s.start <= span.start < s.end for s in steps)
    ]
    number = max(len(steps), 1)

    def a_step(prefixes: tuple[str, ...]) -> float:
        return sum(span.name.startswith(prefixes) for span in within) / number

    counts = Counts(reads=a_step((_READS,)))
    if on_cuda:
        counts.launches, counts.copies = a_step(_LAUNCHES), a_step(_COPIES)
        counts.synchronisations = a_step(_WAITS)
        counts.operators = _each(_waited_in(within), number)
    return counts


def _waited_in(spans: Iterable[Span]) -> Iterator[str]:
    """The innermost operator around each synchronisation."""
    spans = sorted(spans, key=lambda span: span.start)
    operators = [span for span in spans if not span.name.startswith(("cuda", "cu"))]
    starts = [span.start for span in operators]
    for wait in spans:
        if wait.name.startswith(_WAITS):
            before = range(bisect.bisect_right(starts, wait.start) - 1, -1, -1)
            around = (operators[i].name for i in before if operators[i].end >= wait.end)
            yield next(around, "no operator")


class SyncLines:
    """Notes the lines of Python whose calls make the host wait for the device, on CUDA alone."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._lines: list[str] = []
        self._steps = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Watch one step."""
        self._steps += 1
        if not self._on_cuda:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = self._note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")

    def _note(self, message: Warning | str, *further: object) -> None:
        if _WARNING in str(message):
            self._lines.append(_line(sys._getframe(1)))

    def lines(self) -> dict[str, float]:
        """Return the synchronising calls of each line, a step."""
        return _each(self._lines, max(self._steps, 1))


def _line(frame: FrameType | None) -> str:
    """The innermost line of this package, of Avalanche or of these measurements."""
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        for package in _PACKAGES:
            if package in parts[:-1] and parts[-1] != Path(__file__).name:
                where = parts[len(parts) - 1 - parts[::-1].index(package) :]
                return f"{'/'.join(where)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _each(names: Iterable[str], steps: int) -> dict[str, float]:
    return {name: times / steps for name, times in Counter(names).most_common()}


def told(causes: dict[str, float]) -> str:
    """Return the most frequent causes with their number a step, as one cell of a table."""
    most = list(causes.items())
    rest = sum(number for _, number in most[_NAMED_CAUSES:])
    shown = [f"{name} x{number:.3g}" for name, number in most[:_NAMED_CAUSES]]
    return "; ".join([*shown, f"others x{rest:.3g}"] if rest else shown)
