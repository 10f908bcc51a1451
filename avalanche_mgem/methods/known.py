"""The strategies and plugins that methods are made of, by name.

A list of methods needs no more than names, and what Avalanche's classes take: so it is shown, and
what is wrong with it said, before anything is imported that takes seconds.
"""

from __future__ import annotations

from avalanche_mgem.lazy import Lazy

_WRAPPERS = "avalanche.training.supervised.strategy_wrappers"
_PENALTIES = "avalanche_mgem.methods.penalties"
_LORA = "avalanche_mgem.huggingface.lora"
_PLUGINS = "avalanche.training.plugins"

NAIVE = Lazy(f"{_WRAPPERS}:Naive", ())
REPLAY = Lazy(f"{_WRAPPERS}:Replay", ("mem_size",))
EWC = Lazy(f"{_WRAPPERS}:EWC", ("ewc_lambda", "mode", "decay_factor", "keep_importance_data"))
SI = Lazy(f"{_PENALTIES}:SynapticIntelligence", ("si_lambda", "eps"))
LWF = Lazy(f"{_PENALTIES}:LwF", ("alpha", "temperature"))
AGEM = Lazy(f"{_WRAPPERS}:AGEM", ("patterns_per_exp", "sample_size"))
GEM = Lazy(f"{_WRAPPERS}:GEM", ("patterns_per_exp", "memory_strength"))
GDUMB = Lazy(f"{_WRAPPERS}:GDumb", ("mem_size",))
CUMULATIVE = Lazy("avalanche.training.supervised.cumulative:Cumulative", ())
JOINT_TRAINING = Lazy("avalanche.training.supervised.joint_training:JointTraining", ())

REPLAY_PLUGIN = Lazy(
    f"{_PLUGINS}.replay:ReplayPlugin",
    ("mem_size", "batch_size", "batch_size_mem", "task_balanced_dataloader", "storage_policy"),
)
EWC_PLUGIN = Lazy(f"{_PLUGINS}.ewc:EWCPlugin", EWC)
SI_PLUGIN = Lazy(f"{_PENALTIES}:SynapticIntelligencePlugin", SI)
LWF_PLUGIN = Lazy(f"{_PENALTIES}:LwFPlugin", LWF)

MGEM_PLUGIN = Lazy("avalanche_mgem.plugins.mgem:MGEMPlugin")
MIGU_PLUGIN = Lazy("avalanche_mgem.plugins.migu:MIGUPlugin")
HYBRID_PLUGIN = Lazy("avalanche_mgem.plugins.hybrid:HybridMagnitudePlugin")
MGEM = Lazy("avalanche_mgem.strategies:MGEM", MGEM_PLUGIN)
MIGU = Lazy("avalanche_mgem.strategies:MIGU", MIGU_PLUGIN)
HYBRID = Lazy("avalanche_mgem.strategies:HybridMagnitude", HYBRID_PLUGIN)

LORA_PLUGIN = Lazy(f"{_LORA}:LoRAPlugin")
INCLORA_PLUGIN = Lazy(f"{_LORA}:IncLoRAPlugin")
OLORA_PLUGIN = Lazy(f"{_LORA}:OLoRAPlugin")
