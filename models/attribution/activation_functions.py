"""Which of torch's functions are a network's activations, as a mode of the calling thread can see them.

Modules and functional calls reach the same few functions, so watching those misses neither, and needs no hook
on the shared model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RELU = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
RELU6 = frozenset({F.relu6, F.hardtanh, F.hardtanh_})
SMOOTH = frozenset({F.silu, F.gelu, F.hardswish})
