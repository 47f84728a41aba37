"""Methods for networks of tokens, which read how attention passes the evidence on.

AttnLRP (Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers")
carries the logit down by rules that share it out: an activation passes its relevance on as it is, a
normalisation counts as a constant scale, and what two factors make is halved between them. As gradient times
input that is an ordinary backward through changed functions. LeGrad (Bousselham et al. 2024, "LeGrad: An
Explainability Method for Vision Transformers via Feature Formation Sensitivity") asks at each layer which
attention weights would raise the score that the classifier gives to that layer's own output.

Functions are changed where they are called, in the calling thread only; the model stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.attribution.activation_functions import SMOOTH
from models.attribution.forward import ForwardPass
from models.attribution.targets import Target
from models.errors import ExplanationError

_PRODUCTS = frozenset(
    {
        torch.matmul,
        torch.bmm,
        torch.mul,
        Tensor.matmul,
        Tensor.bmm,
        Tensor.__matmul__,
        Tensor.mul,
        Tensor.__mul__,
    }
)
_SOFTMAX = frozenset({F.softmax, torch.softmax, Tensor.softmax})


class _Share(torch.autograd.Function):
    """Identity whose backward passes a share of the gradient down."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.share, None


class _Pass(torch.autograd.Function):
    """Activation whose relevance is its input's: its slope is its value over its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(torch.where(x == 0, 0.0, y / x))
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.saved_tensors[0], None


class _RelevanceRules(TorchFunctionMode):
    """Mode in which this thread's functions have AttnLRP's rules for their backward."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in SMOOTH:
            # Of a copy, which some of them write over.
            return _Pass.apply(args[0], func(args[0].detach().clone(), *args[1:], **kwargs))
        if func is F.layer_norm:
            return _normalise(*args, **kwargs)
        if func is F.rms_norm:
            return _divide_by_size(*args, **kwargs)
        if func in (F.scaled_dot_product_attention, F.multi_head_attention_forward):
            # The product of query and key is a factor itself.
            shares = {"query": 0.25, "key": 0.25, "value": 0.5}
            shared = (_Share.apply(x, share) for x, share in zip(args, shares.values(), strict=False))
            by_name = {name: _Share.apply(kwargs[name], shares[name]) for name in shares if name in kwargs}
            return func(*shared, *args[3:], **kwargs | by_name)
        if func in _PRODUCTS and all(isinstance(item, Tensor) and item.requires_grad for item in args):
            return func(*(_Share.apply(item, 0.5) for item in args))
        return func(*args, **kwargs)


def _normalise(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred / (centred.detach().square().mean(dims, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _divide_by_size(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    y = x / (x.detach().square().mean(dims, keepdim=True) + least).sqrt()
    return y if weight is None else y * weight


def attention_relevance(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return AttnLRP's maps (N, rows, cols): the relevance of each token of the pass's block for one target
    an image.
    """
    _check_tokens(forward)
    own = forward.map.detach().requires_grad_()
    with torch.enable_grad(), _RelevanceRules():
        logits = forward.run_again(own)
        total = torch.stack([target.of(row) for target, row in zip(targets, logits, strict=True)]).sum()
    (gradient,) = torch.autograd.grad(total, own)
    return (gradient * own.detach()).sum(1)


class _WrittenOut(TorchFunctionMode):
    """Mode in which the attention weights (N, heads, tokens, tokens) of this thread are written out and
    kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._attend_by_heads(*args, **kwargs), None
        result = func(*args, **kwargs)
        if func in _SOFTMAX and result.ndim == 4 and result.requires_grad:
            self.weights.append(result)
        return result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if is_causal or enable_gqa:
            raise ExplanationError("LeGrad reads attention of all tokens to all. Choose another method.")
        scores = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
        if attn_mask is not None:
            scores = scores + attn_mask
        weights = scores.softmax(-1)
        self.weights.append(weights)
        return weights @ value

    def _attend_by_heads(
        self, query: Tensor, key: Tensor, value: Tensor, width: int, heads: int, weight: Tensor | None,
        bias: Tensor | None, *others: Any, out_proj_weight: Tensor | None = None,
        out_proj_bias: Tensor | None = None, attn_mask: Tensor | None = None, **more: Any,
    ) -> Tensor:  # fmt: skip
        if query is not key or key is not value or weight is None or attn_mask is not None:
            raise ExplanationError("LeGrad reads attention of all tokens to all. Choose another method.")
        # bias_k, bias_v, add_zero_attn and dropout_p come between, and none of them serves images.
        out_weight, out_bias = others[4:6] if len(others) >= 6 else (out_proj_weight, out_proj_bias)
        count, batch = query.shape[:2]
        q, k, v = (
            part.reshape(count, batch, heads, width // heads).permute(1, 2, 0, 3)
            for part in F.linear(query, weight, bias).chunk(3, dim=-1)
        )
        attended = self._attend(q, k, v).permute(2, 0, 1, 3).reshape(count, batch, width)
        return F.linear(attended, out_weight, out_bias)


def legrad(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return LeGrad's maps (N, rows, cols), at least 0, over the layers above the pass's block.

    With s the score that the classifier gives to the output of a layer, and A its attention weights, the map
    is the mean of max(ds/dA, 0) over heads and queries, summed over the layers. Raises ExplanationError where
    a layer attends to a part of the tokens only, as Swin's windows do, or none is above the block.
    """
    _check_tokens(forward)
    model, value = forward.model, forward.value
    first = model.index_of(forward.block) + 1
    layers: list[tuple[str, Tensor, list[Tensor]]] = []
    with torch.enable_grad():
        for place, name in enumerate(model.block_names[first:], start=first):
            with _WrittenOut() as attention:
                value = model.run_blocks(value.detach().requires_grad_(), place, place + 1)
            if attention.weights:
                layers.append((name, value, attention.weights))
        if not layers:
            raise ExplanationError(f"No block above {forward.block!r} attends; choose a lower one.")
        last = model.index_of(layers[-1][0]) + 1
        maps: list[Tensor] = []
        for name, output, weights in layers:
            logits = model.head(model.run_blocks(output, last, len(model.block_names)))
            score = torch.stack([target.of(row) for target, row in zip(targets, logits, strict=True)]).sum()
            maps += [
                _as_map(forward, name, output, gradient.clamp(min=0).mean((1, 2)))
                for gradient in torch.autograd.grad(score, weights)
            ]
    return torch.stack(maps).sum(0)


def _as_map(forward: ForwardPass, block: str, output: Tensor, keys: Tensor) -> Tensor:
    """Return what keys (N, tokens) of a layer have as (N, rows, cols), without the tokens of no place."""
    layout = forward.model.layout(block)
    if layout.name != "tokens" or keys.shape != output.shape[:2]:
        raise ExplanationError(f"Block {block!r} does not attend to all tokens. Choose another method.")
    return layout.to_map(keys[..., None])[:, 0]


def _check_tokens(forward: ForwardPass) -> None:
    backbone = forward.model.backbone
    if forward.model.layout(forward.block).name != "tokens" or backbone.is_exported:
        raise ExplanationError(
            f"Block {forward.block!r} of {backbone.name} passes no tokens on whose attention could be read. "
            "Choose another method."
        )
