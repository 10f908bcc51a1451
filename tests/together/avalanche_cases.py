"""Avalanche's strategies and plugins, each in a run that is as small as it can be.

CASES: name -> function(ours) -> (strategy, experiences). `ours` are further plugins; behind a name
that ends in ", last" they come behind Avalanche's own, else before them, as strategies have it.
"""

from dataclasses import replace
from functools import partial

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import SCRModel, SimpleMLP
from avalanche.models.base_model import BaseModel
from avalanche.models.generator import MlpVAE, VAE_loss
from avalanche.models.packnet import PackNetModel, PackNetPlugin
from avalanche.models.pnn import PNN
from avalanche.training import plugins as theirs
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from tiny import N_CLASSES, N_FEATURES, class_stream, tiny_data
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_mgem.methods.penalties import SynapticIntelligencePlugin
from avalanche_mgem.streams import split_stream

WIDTH = 16


class Features(BaseModel, nn.Module):
    """What LFL, feature distillation, feature replay and NCM ask of a model."""

    def __init__(self, keeps=False):
        super().__init__()
        self.keeps, self.features = keeps, None
        self.layers = nn.Sequential(
            *(nn.Linear(N_FEATURES, WIDTH), nn.ReLU()),
            *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
        )
        self.classifier = nn.Linear(WIDTH, N_CLASSES)

    def forward(self, x):
        features = self.get_features(x)
        if self.keeps:
            self.features = features
        return self.classifier(features)

    def get_features(self, x):
        return self.layers(x)


def mlp():
    return nn.Sequential(
        *(nn.Linear(N_FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        nn.Linear(WIDTH, N_CLASSES),
    )


def scr_model():
    encoder = nn.Sequential(nn.Linear(N_FEATURES, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    return SCRModel(encoder, nn.Linear(WIDTH, 8))


def options(model, **others):
    """What each strategy is given."""
    return {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
        "train_mb_size": 8,
        "train_epochs": 2,
        "eval_mb_size": 36,
        "evaluator": EvaluationPlugin(),
        **others,
    }


def tasks():
    return class_stream(task_labels=True).train_stream


def classes():
    return class_stream().train_stream


def old_benchmark():
    """Of the kind that iCaRL asks for, whose experiences know their benchmark."""
    data = tiny_data()
    sets = [TensorDataset(data.x_train, data.y_train), TensorDataset(data.x_test, data.y_test)]
    for each in sets:
        each.targets = each.tensors[1].tolist()
    return nc_benchmark(*sets, 3, False, shuffle=False)


def strategy(kind, ours, *, model=mlp, stream=classes, without=(), **settings):
    """A strategy of Avalanche's."""
    given = options(model(), **settings)
    made = kind(plugins=ours, **{name: v for name, v in given.items() if name not in without})
    return made, stream()


def plugin(ours, *, make, last=False, model=mlp, stream=classes, **settings):
    """Avalanche's Naive with a plugin; `make` gets the model."""
    net = model()
    made = make(net)
    criterion = {"criterion": made.ppp_loss} if hasattr(made, "ppp_loss") else {}
    plugins = [made, *ours] if last else [*ours, made]
    given = options(net, **criterion, **settings)
    return supervised.Naive(plugins=plugins, **given), stream()


def icarl(ours):
    extractor, head = Features().layers, nn.Linear(WIDTH, N_CLASSES)
    given = options(nn.Sequential(extractor, head))
    del given["model"], given["criterion"]
    made = supervised.ICaRL(
        feature_extractor=extractor,
        classifier=head,
        memory_size=12,
        buffer_transform=None,
        fixed_memory=True,
        plugins=ours,
        **given,
    )
    return made, old_benchmark().train_stream


def streaming_lda(ours):
    net = nn.Sequential(nn.Linear(N_FEATURES, 8), nn.ReLU())
    given = options(net, slda_model=net, input_size=8, num_classes=N_CLASSES)
    del given["model"], given["optimizer"]
    return supervised.StreamingLDA(plugins=ours, **given), classes()


def generative_replay(ours):
    generator = MlpVAE((1, N_FEATURES, 1), nhid=2, device="cpu")
    inner = options(generator, criterion=VAE_loss, plugins=[theirs.GenerativeReplayPlugin()])
    inner["optimizer"] = torch.optim.SGD(generator.parameters(), lr=0.01)
    net = SimpleMLP(N_CLASSES, N_FEATURES, WIDTH, hidden_layers=2, drop_rate=0.0)
    training = supervised.VAETraining(**inner)
    made = supervised.GenerativeReplay(generator_strategy=training, plugins=ours, **options(net))
    data = tiny_data()
    shape = (-1, 1, N_FEATURES, 1)  # which the generator asks for
    data = replace(data, x_train=data.x_train.view(shape), x_test=data.x_test.view(shape))
    return made, split_stream(data, n_experiences=3, seed=0).train_stream


def pnn(ours):
    net = PNN(num_layers=2, in_features=N_FEATURES, hidden_features_per_column=8)
    return supervised.PNNStrategy(plugins=ours, **options(net)), tasks()


def joint(ours):
    made, stream = strategy(supervised.JointTraining, ours)
    return made, [stream]


def online(ours):
    made, stream = strategy(supervised.OnlineNaive, ours, without=("train_epochs",))
    parts = split_online_stream(stream, 8, seed=0, access_task_boundaries=True)
    return made, list(parts)


def scheduled(ours):
    made, stream = strategy(supervised.Naive, ours)
    schedule = torch.optim.lr_scheduler.StepLR(made.optimizer, 1, 0.9)
    made.plugins.append(theirs.LRSchedulerPlugin(schedule))
    return made, stream


STRATEGIES = {
    "AGEM": {"patterns_per_exp": 6, "sample_size": 12},
    "CWRStar": {"cwr_layer_name": None},
    "CoPE": {"mem_size": 12, "n_classes": N_CLASSES, "p_size": N_CLASSES},
    "Cumulative": {},
    "DER": {"mem_size": 24, "batch_size_mem": 6},
    "ER_ACE": {"mem_size": 24, "batch_size_mem": 6},
    "EWC": {"ewc_lambda": 1.0},
    "FeatureReplay": {
        "model": Features,
        "last_layer_name": "classifier",
        "mem_size": 12,
        "batch_size_mem": 6,
    },
    "FromScratchTraining": {},
    "GDumb": {"mem_size": 12},
    "GEM": {"patterns_per_exp": 6, "memory_strength": 0.5},
    "GSS_greedy": {"mem_size": 72, "mem_strength": 2, "input_size": [N_FEATURES]},
    "LFL": {"model": Features, "lambda_e": 1.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "MAS": {},
    "MER": {"mem_size": 12, "batch_size_mem": 4, "n_inner_steps": 2},
    "MIR": {"mem_size": 24, "subsample": 12, "batch_size_mem": 6},
    "Naive": {},
    "PackNet": {
        "model": lambda: PackNetModel(mlp()),
        "stream": tasks,
        "post_prune_epochs": 1,
        "prune_proportion": 0.5,
    },
    "Replay": {"mem_size": 12},
    "SCR": {
        "model": scr_model,
        "augmentations": nn.Identity(),
        "mem_size": 12,
        "batch_size_mem": 6,
        "without": ("criterion",),
    },
    "SynapticIntelligence": {"si_lambda": 1.0},
}
PLUGINS = {
    "AGEMPlugin": {"make": lambda m: theirs.AGEMPlugin(6, 12)},
    "CWRStarPlugin": {"make": lambda m: theirs.CWRStarPlugin(m, None)},
    "CWRStarPlugin(freeze_remaining_model=False)": {
        "make": lambda m: theirs.CWRStarPlugin(m, None, freeze_remaining_model=False)
    },
    "CoPEPlugin": {"make": lambda m: theirs.CoPEPlugin(12, n_classes=N_CLASSES, p_size=N_CLASSES)},
    "EWCPlugin(mode='online')": {"make": lambda m: theirs.EWCPlugin(1.0, "online", 0.5)},
    "EarlyStoppingPlugin": {"make": lambda m: theirs.EarlyStoppingPlugin(1, "train_stream")},
    "FeatureDistillationPlugin": {
        "make": lambda m: theirs.FeatureDistillationPlugin(),
        "model": partial(Features, keeps=True),
    },
    "FromScratchTrainingPlugin": {"make": lambda m: theirs.FromScratchTrainingPlugin()},
    "GDumbPlugin": {"make": lambda m: theirs.GDumbPlugin(12)},
    "GEMPlugin": {"make": lambda m: theirs.GEMPlugin(6, 0.5)},
    "GSS_greedyPlugin": {"make": lambda m: theirs.GSS_greedyPlugin(72, 2, [N_FEATURES])},
    "LFLPlugin": {"make": lambda m: theirs.LFLPlugin(1.0), "model": Features},
    "LwFPlugin": {"make": lambda m: theirs.LwFPlugin(1.0, 2.0)},
    "MASPlugin": {"make": lambda m: theirs.MASPlugin()},
    "MIRPlugin": {"make": lambda m: theirs.MIRPlugin(6, 24, 12)},
    "PackNetPlugin": {
        "make": lambda m: PackNetPlugin(1, 0.5),
        "model": lambda: PackNetModel(mlp()),
        "stream": tasks,
    },
    "RARPlugin": {
        "make": lambda m: theirs.RARPlugin(6, 24, opt_lr=0.1, use_adversarial_replay=True)
    },
    "RWalkPlugin": {"make": lambda m: theirs.RWalkPlugin(delta_t=2)},
    "ReplayPlugin": {"make": lambda m: theirs.ReplayPlugin(12)},
    "SynapticIntelligencePlugin": {"make": lambda m: SynapticIntelligencePlugin(1.0)},
}
CASES = {
    **{n: partial(strategy, getattr(supervised, n), **kw) for n, kw in STRATEGIES.items()},
    "GenerativeReplay": generative_replay,
    "ICaRL": icarl,
    "JointTraining": joint,
    "LRSchedulerPlugin": scheduled,
    "OnlineNaive": online,
    "PNNStrategy": pnn,
    "StreamingLDA": streaming_lda,
    **{n: partial(plugin, **kw) for n, kw in PLUGINS.items()},
    **{f"{n}, last": partial(plugin, last=True, **kw) for n, kw in PLUGINS.items()},
}


def run_of(name, ours):
    """Return the strategy and the experiences of a case, the same ones every time."""
    torch.manual_seed(7)
    return CASES[name](ours)
