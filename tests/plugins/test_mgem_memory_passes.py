"""How the memory's passes are computed: in bfloat16, or on images in another layout."""

import copy
import warnings

import pytest
import torch
from tiny import Call, domain_stream, make_model, make_strategy, parameter_vector, train
from torch import nn
from torch.optim import SGD

from avalanche_mgem import MGEMPlugin
from avalanche_mgem.bridge import rows as memory_rows
from avalanche_mgem.model import bf16
from avalanche_mgem.streams import ArrayData, permuted_stream


def rows_of(model, stream, **arguments):
    """The memory's gradients at the first iteration of the second task, [K, P]."""
    plugin, seen = MGEMPlugin(12, 0.5, seed=0, **arguments), []
    look = Call(before_backward=lambda s: seen.append(plugin._matrix.rows.clone()))
    strategy = make_strategy(model, [plugin, look], optimizer=lambda m: SGD(m.parameters(), lr=0.0))
    train(strategy, stream.train_stream[:2])
    return seen[-1]


@pytest.fixture
def with_units(monkeypatch):
    """Make a processor have units for bfloat16, or none."""

    def has(units):
        for module in (bf16, memory_rows):
            monkeypatch.setattr(module, "has_bf16_units", lambda device: units)

    return has


def apart(rows, others):
    return float(((rows - others).norm(dim=1) / others.norm(dim=1)).max())


@pytest.mark.parametrize("passes", ["loop", "grouped"])
def test_bf16_rows_are_those_of_float32_to_its_digits(passes, with_units):
    with_units(True)
    rows, others = (
        rows_of(
            make_model(),
            domain_stream(),
            memory_precision=precision,
            memory_passes=passes,
            memory_groups=3,
        )
        for precision in ("bf16", "float32")
    )
    assert (rows.dtype, others.dtype) == (torch.bfloat16, torch.float32)
    assert 1e-5 < apart(rows, others) < 3e-2


@pytest.mark.parametrize("setting", ["batch norm", "dropout", "growing head"])
def test_bf16_passes_leave_the_minibatch_in_float32(setting, with_units):
    with_units(True)
    dtypes = set()
    watch = Call(before_backward=lambda s: dtypes.add((s.mb_output.dtype, s.loss.dtype)))
    plugin = MGEMPlugin(12, 0.5, memory_precision="bf16", seed=0)
    train(make_strategy(make_model(setting), [plugin, watch]), domain_stream().train_stream)
    assert dtypes == {(torch.float32, torch.float32)}
    assert plugin.last_projection.dots.isfinite().all()


@pytest.mark.filterwarnings("ignore:memory_precision='bf16'")
@pytest.mark.parametrize("passes", ["loop", "grouped"])
def test_without_units_rows_are_those_of_float32_rounded_once(passes, with_units):
    with_units(False)
    settings = {"memory_passes": passes, "memory_groups": 3}
    rows = rows_of(make_model(), domain_stream(), memory_precision="bf16", **settings)
    others = rows_of(make_model(), domain_stream(), **settings)
    assert torch.equal(rows, others.bfloat16())


def test_a_processor_without_units_is_told_of_in_one_line(with_units):
    for has_units in (False, True):
        with_units(has_units)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows_of(make_model(), domain_stream(), memory_precision="bf16")
        told = [str(w.message) for w in caught if "memory_precision='bf16'" in str(w.message)]
        assert len(told) == (not has_units)
        assert all("\n" not in line and "bfloat16" in line for line in told)


def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 3, 8, 8, generator=generator)
    y = torch.arange(48) % 10
    return permuted_stream(
        ArrayData("images", x, y, x[:10], y[:10]), n_experiences=2, train_per_experience=24, seed=0
    )


@pytest.mark.parametrize("batch_size", [None, 5])
def test_batches_of_images_are_kept_in_channels_last(batch_size):
    layouts = set()

    class Seeing(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            layouts.add((len(x), x.is_contiguous(memory_format=torch.channels_last)))
            return self.head(self.convolution(x).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, stream = Seeing(), images()
    options = {"memory_batch_size": batch_size}
    rows = rows_of(copy.deepcopy(model), stream, memory_format="channels_last", **options)
    assert (batch_size or 12, True) in layouts
    others = rows_of(model, stream, **options)
    assert apart(rows, others) < 1e-5  # without batch normalisation it is rounding alone


def test_channels_last_is_another_rounding_of_a_normalised_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    model, stream = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 10)), images()
    plain = rows_of(copy.deepcopy(model), stream)
    last = rows_of(copy.deepcopy(model), stream, memory_format="channels_last")
    assert apart(last, plain) < 1e-4


def test_what_is_not_an_image_stays_as_it_is():
    ends = [
        parameter_vector(_trained(memory_format=layout)) for layout in ("preserve", "channels_last")
    ]
    assert torch.equal(*ends)


def _trained(**arguments):
    strategy = make_strategy(make_model(), [MGEMPlugin(12, 0.5, seed=0, **arguments)])
    train(strategy, domain_stream().train_stream)
    return strategy.model
