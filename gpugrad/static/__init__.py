"""Static mode: programs recorded once and replayed as one call."""

from .compiled import Compiled, compile
from .graph import Graph

__all__ = ["Compiled", "Graph", "compile"]
