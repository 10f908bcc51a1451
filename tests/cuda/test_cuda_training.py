"""Training with the plugins on a GPU: the same as on the CPU, and nothing else is touched."""

import functools
from dataclasses import replace

import pytest
import torch
from avalanche.training.supervised import Naive
from checkpoint_runs import TRAINING, Run
from cuda_cases import DEVICE, needs_cuda, parameters_of, trained
from tiny import Call, domain_stream, parameter_vector, relative_distance
from torch.optim import SGD, AdamW

from avalanche_mgem import (
    ClipGradientPlugin,
    HybridMagnitudePlugin,
    MGEMPlugin,
    MIGUPlugin,
    with_mixed_precision,
)
from avalanche_mgem.model import kept_gradients

pytestmark = [pytest.mark.cuda, needs_cuda]
PLUGINS = {
    "gem": lambda: [MGEMPlugin(12, 0.1, seed=0)],
    "p": lambda: [MGEMPlugin(12, 0.1, seed=0, parameter_groups="layer")],
    "d update": lambda: [MGEMPlugin(12, 0.1, seed=0, memory_groups=3, restrict="update")],
    "loop": lambda: [MGEMPlugin(12, 0.1, seed=0, memory_groups=3, memory_passes="loop")],
    "grouped": lambda: [MGEMPlugin(12, 0.1, seed=0, memory_groups=3, memory_passes="grouped")],
    "drawn": lambda: [MGEMPlugin(12, 0.1, seed=0, memory_batch_size=4, refresh_every=2)],
    "approximate": lambda: [MGEMPlugin(12, 0.1, seed=0, solver="approximate")],
    "host memory": lambda: [MGEMPlugin(12, 0.1, seed=0, memory_device="cpu")],
    "gap": lambda: [MGEMPlugin(8, 0.1, seed=0, generalization_every=1)],
    "migu": lambda: [MIGUPlugin(0.5)],
    "migu update": lambda: [MIGUPlugin(0.5, freeze="update")],
    "migu by gradient": lambda: [MIGUPlugin(0.5, score="gradient", freeze="update")],
    "hybrid": lambda: [HybridMagnitudePlugin(seed=0)],
    "all": lambda: [MGEMPlugin(12, seed=0), MIGUPlugin(0.5), ClipGradientPlugin(0.5)],
}
OPTIMIZERS = {
    "sgd": lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: AdamW(m.parameters(), lr=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("plugins", PLUGINS)
def test_it_ends_where_the_cpu_ends(plugins, optimizer):
    there, here = (
        trained(device, PLUGINS[plugins](), optimizer=OPTIMIZERS[optimizer])
        for device in (DEVICE, "cpu")
    )
    assert all(p.device.type == DEVICE for p in there.model.parameters())
    assert relative_distance(parameters_of(there), parameters_of(here)) < 1e-7


@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_the_gate_masks_the_same_rows_and_holds_them(freeze):
    masks = {}
    for device in (DEVICE, "cpu"):
        plugin = MIGUPlugin(0.5, freeze=freeze)
        seen = masks[device] = []
        before = []

        def note(strategy, plugin=plugin, seen=seen, before=before):
            mask = plugin.last_mask
            seen.append(None if mask is None else {k: v.cpu() for k, v in mask.items()})
            if mask is not None and freeze == "update":
                for name, kept in mask.items():
                    weight = dict(strategy.model.named_parameters())[f"{name}.weight"]
                    assert torch.equal(weight[~kept], before[-1][f"{name}.weight"][~kept])

        def keep(strategy, before=before):
            named = strategy.model.named_parameters()
            before[:] = [{name: p.detach().clone() for name, p in named}]

        watch = Call(before_forward=keep, after_training_iteration=note)
        trained(device, [plugin, watch], optimizer=OPTIMIZERS["adamw"])
    assert any(masks[DEVICE])
    for there, here in zip(masks[DEVICE], masks["cpu"], strict=True):
        assert (there is None) == (here is None)
        assert there is None or all(torch.equal(there[k], here[k]) for k in here)


@pytest.mark.parametrize("freeze", ["gradient", "update"])
def test_gradients_of_masked_rows_are_left_out_with_the_same_result(freeze, monkeypatch):
    monkeypatch.setattr(kept_gradients, "_A_MOVE", 0)
    ends = []
    for least in (-1, 2**60):
        monkeypatch.setattr(kept_gradients, "_A_CALL_ELSEWHERE", least)
        plugin = MIGUPlugin(0.5, freeze=freeze, skip_tasks=0)
        ends.append((parameters_of(trained(DEVICE, [plugin])), plugin))
    (ours, fused), (others, masked) = ends
    assert set(fused.last_path.values()) == {"fused"}
    assert set(masked.last_path.values()) == {"masked: it would take longer"}
    torch.testing.assert_close(ours, others)
    for name, mask in masked.last_mask.items():
        assert torch.equal(fused.last_mask[name], mask)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("plugins", ["gem", "d update", "migu update", "all", "hybrid"])
def test_it_trains_in_half_precision(plugins, precision):
    half = functools.partial(with_mixed_precision(Naive), precision=precision)
    strategy = trained(DEVICE, PLUGINS[plugins](), strategy=half, stream=domain_stream())
    assert parameters_of(strategy).isfinite().all()


@pytest.mark.parametrize("plugin", [MGEMPlugin, MIGUPlugin])
def test_a_step_that_is_not_finite_is_skipped(plugin):
    arguments = (12,) if plugin is MGEMPlugin else (0.5,)
    seen = {}

    def spoil(strategy):
        if strategy.clock.train_iterations == 7:
            next(strategy.model.parameters()).grad[0, 0] = torch.inf
            seen["before"] = parameter_vector(strategy.model)

    def look(strategy):
        if strategy.clock.train_iterations == 7:
            seen["after"] = parameter_vector(strategy.model)

    ours = plugin(*arguments, on_nonfinite="skip")
    trained(DEVICE, [Call(after_backward=spoil, after_update=look), ours])
    assert ours.skipped_steps == 1
    assert torch.equal(seen["before"], seen["after"])


@pytest.mark.parametrize("setting", ["dropout", "batch norm"])
def test_the_random_states_of_the_device_are_left_alone(setting):
    """The memory's passes draw from states of their own."""
    states = {}
    for name, plugins in (("plain", []), ("ours", [MGEMPlugin(12, 0.0, seed=0)])):
        trained(DEVICE, plugins, setting=setting)
        states[name] = torch.cuda.get_rng_state() if DEVICE == "cuda" else torch.get_rng_state()
    assert torch.equal(states["plain"], states["ours"])


@pytest.mark.parametrize("method", ["mgem-pd", "migu-update", "hybrid", "agem", "replay"])
def test_a_run_that_is_resumed_is_the_one_that_was_never_stopped(method, tmp_path):
    training = replace(TRAINING, device=DEVICE)
    whole = Run(method, training=training).train()
    path = tmp_path / "run.ckpt"
    Run(method, training=training).train(last=2, path=path)
    resumed = Run(method, seed=9, training=training)
    assert resumed.load(path) == 2
    resumed.train(first=2)
    ends = [parameter_vector(run.strategy.model).cpu() for run in (resumed, whole)]
    assert relative_distance(*ends) < 1e-6


@pytest.mark.filterwarnings("ignore:the random states of cuda")
def test_a_run_moves_to_the_cpu(tmp_path):
    on_device = replace(TRAINING, device=DEVICE)
    path = tmp_path / "run.ckpt"
    Run("mgem-d", training=on_device).train(last=1, path=path)
    moved = Run("mgem-d", training=TRAINING)
    assert moved.load(path) == 1
    moved.train(first=1, last=2)
    assert all(p.device.type == "cpu" for p in moved.strategy.model.parameters())


@pytest.mark.parametrize("memory_device", [None, "cpu"])
def test_the_memory_is_where_it_is_asked_for(memory_device):
    plugin = MGEMPlugin(12, 0.1, seed=0, memory_device=memory_device)
    trained(DEVICE, [plugin])
    devices = {group.batch[0].device.type for group in plugin.memory.closed_groups()}
    assert devices == {memory_device or DEVICE}
