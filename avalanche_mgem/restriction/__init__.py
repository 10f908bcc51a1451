"""How a gradient is restricted: pure functions on tensors, no model and no Avalanche.

`project` moves a gradient into the cone of those that do no harm to the memory. A dual solver
decides how strongly each memory row pushes; a schedule decides how strongly it must push at least.
"""

from avalanche_mgem.restriction.change import Projection
from avalanche_mgem.restriction.cone import project
from avalanche_mgem.restriction.dual import DiagonalSolver, DualSolver, QuadprogSolver
from avalanche_mgem.restriction.pivoting import PivotingSolver
from avalanche_mgem.restriction.polyak import PolyakStrength
from avalanche_mgem.restriction.schedules import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    Schedule,
)

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "DiagonalSolver",
    "DualSolver",
    "LinearSchedule",
    "PivotingSolver",
    "PolyakStrength",
    "Projection",
    "QuadprogSolver",
    "Schedule",
    "project",
]
