"""Reads a graph back from its text.

A small parser: names are looked up among operations, primitives, dtypes and functions of gpugrad;
nothing is evaluated.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from .. import dtypes
from ..backend.numpy import xp as np
from ..codegen.expr import PRIMITIVES, Expr, const, exactly, variable
from ..codegen.rows import RowProgram
from ..ops.core import REGISTRY, Meta
from .graph import (
    Call,
    CheckCall,
    FunctionCall,
    Graph,
    Node,
    OpCall,
    ProgramCall,
    RowsCall,
    UpdateCall,
    Value,
    VjpCall,
)
from .passes.pointwise import interned_program
