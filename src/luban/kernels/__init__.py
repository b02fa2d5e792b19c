"""Kernels of luban's own for training on a CPU, compiled on the machine they run on."""

from luban.kernels.building import NoKernelsError, find
from luban.kernels.library import MOST_ITERATIONS, Library, Moving

__all__ = ["MOST_ITERATIONS", "Library", "Moving", "NoKernelsError", "find"]
