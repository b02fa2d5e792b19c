"""Kernels of luban's own for training on a CPU, compiled on the machine they run on."""

from luban.kernels.building import NoKernelsError, find
from luban.kernels.library import Library

__all__ = ["Library", "NoKernelsError", "find"]
