"""What attention passes on: AttnLRP against its rules written out, LeGrad against the product rule, and both
by every way in which torch attends.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from models import image_from_array
from models.attribution.allowed import methods_for_others, usable_methods
from models.attribution.attention import _RelevanceRules, _WrittenOut
from models.attribution.forward import run_forward
from models.attribution.registry import METHODS, attribute, attribute_each
from models.attribution.targets import make_target
from models.errors import ExplanationError
from models.explainer import Explainer, ExplainOptions
from models.images.geometry import Geometry
from models.metrics.randomization import check_randomization
from models.networks.adoption import adopt
from tests.support.remote_device import remote_device, send

CLASSES = ["ant", "bee", "wasp"]
GEOMETRY = Geometry(32, 32, 32, (0.5,) * 3, (0.5,) * 3, "bilinear")
NAMES = ("attention_relevance", "legrad")
SIZES = {"patch_size": 8, "num_classes": 3}


def small_vit(fused=True):
    torch.manual_seed(0)
    network = timm.models.VisionTransformer(
        img_size=32, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2, **SIZES
    )
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.3)
    for block in network.blocks:
        block.attn.fused_attn = fused
    return adopt(network.requires_grad_(False), classes=CLASSES, geometry=GEOMETRY)


def small_torchvision():
    torch.manual_seed(0)
    network = VisionTransformer(image_size=32, num_layers=3, num_heads=2, hidden_dim=24, mlp_dim=48, **SIZES)
    for weights in network.parameters():
        torch.nn.init.normal_(weights, 0, 0.3)
    return adopt(network.requires_grad_(False), classes=CLASSES, geometry=GEOMETRY)


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vit():
    return small_vit()


def maps(model, x, name, classes=(0, 2), block=None):
    forward = run_forward(model, x, block=block or model.blocks_with_map[0])
    return [item.values for item in attribute_each(forward, list(classes), method=name)]


def test_relevance_is_shared_out_by_the_rules_of_the_paper():
    """One layer of attention and a GELU, its relevances R passed down step by step, without autograd."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = 7, 6
    x = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    query, key, value, last = torch.randn(4, width, width, generator=generator, dtype=torch.float64)
    score = torch.randn(width, generator=generator, dtype=torch.float64)

    q, k, v = x @ query.T, x @ key.T, x @ value.T
    products = q @ k.T
    weights = products.softmax(-1)
    attended = weights @ v
    hidden = attended @ last.T
    activated = F.gelu(hidden)

    relevance = activated * score / tokens  # of the mean over tokens of activated . score
    # The activation passes it on as it is; a linear layer by the shares of its summands.
    of_attended = attended * ((relevance / hidden) @ last)
    # Of a product each factor has half.
    ratio = of_attended / attended / 2
    of_weights, of_value = weights * (ratio @ v.T), v * (weights.T @ ratio)
    of_products = products * (of_weights - weights * of_weights.sum(-1, keepdim=True))
    ratio = of_products / products / 2
    of_query, of_key = q * (ratio @ k), k * (ratio.T @ q)
    expected = sum(
        x * ((part / output) @ matrix)
        for part, output, matrix in ((of_query, q, query), (of_key, k, key), (of_value, v, value))
    )

    own = x.clone().requires_grad_()
    with _RelevanceRules():
        q, k, v = (F.linear(own, matrix) for matrix in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        logit = (F.gelu(F.linear(attended, last)) @ score).mean()
    (gradient,) = torch.autograd.grad(logit, own)
    torch.testing.assert_close(gradient * x, expected)


def test_a_normalisation_counts_as_a_constant_scale():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weight, bias = torch.linspace(0.5, 2, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    with _RelevanceRules():
        y = F.layer_norm(x, (6,), weight, bias)
    torch.testing.assert_close(y, F.layer_norm(x, (6,), weight, bias))
    (gradient,) = torch.autograd.grad(y[:, 2].sum(), x)
    scale = weight[2] / x.var(-1, correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(gradient, scale.detach() * (torch.eye(6, dtype=torch.float64)[2] - 1 / 6))


def test_so_does_one_by_size_alone_and_names_of_arguments_do_not_matter():
    q, k, v = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = q.clone().requires_grad_()
    with _RelevanceRules():
        y = F.rms_norm(x, (6,))
    torch.testing.assert_close(y, F.rms_norm(x, (6,)))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * q, y.detach())
    with _RelevanceRules():
        one = F.scaled_dot_product_attention(x, k, v)
        other = F.scaled_dot_product_attention(query=x, key=k, value=v)
    torch.testing.assert_close(*(torch.autograd.grad(item.sum(), x) for item in (one, other)))


def test_attention_to_some_of_the_tokens_is_refused_by_legrad():
    q = torch.randn(2, 3, 4)
    with _WrittenOut(), pytest.raises(ExplanationError, match="all tokens to all"):
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
    module = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    with _WrittenOut(), pytest.raises(ExplanationError, match="all tokens to all"):
        module(q, q.clone(), q, need_weights=False)


@pytest.mark.parametrize("name", NAMES)
def test_written_out_and_fused_come_to_the_same(vit, x, name):
    for one, other in zip(maps(vit, x, name), maps(small_vit(fused=False), x, name), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


@pytest.fixture
def by_heads():
    """(model, its last attention, a forward of it by matrices, what that forward keeps)."""
    model = small_torchvision()
    layer = model.block(model.block_names[-1])
    attention = next(part for part in layer.modules() if isinstance(part, torch.nn.MultiheadAttention))
    kept = {}

    def attend(query, *_, **__):
        q, k, kept["v"] = (
            part.reshape(*part.shape[:2], 2, 12).transpose(1, 2)
            for part in F.linear(query, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        )
        kept["attended"] = ((q @ k.transpose(2, 3)) / 12**0.5).softmax(-1) @ kept["v"]
        joined = kept["attended"].transpose(1, 2).reshape(query.shape)
        return F.linear(joined, attention.out_proj.weight, attention.out_proj.bias), None

    return model, attention, attend, kept


def test_relevance_by_heads_is_that_of_the_same_sums_as_matrices(by_heads, x):
    model, attention, attend, _ = by_heads
    block = model.block_names[-2]
    found = maps(model, x, "attention_relevance", block=block)
    attention.forward = attend
    for one, other in zip(found, maps(model, x, "attention_relevance", block=block), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_legrad_by_heads_is_what_the_same_sums_as_matrices_give(by_heads, x):
    """Torch's own module, whose weights no mode sees."""
    model, attention, attend, kept = by_heads
    value = model.until(model.block_names[-2], x).detach()
    attention.forward = attend
    logits = model.after(model.block_names[-2], value.requires_grad_())
    del attention.forward
    (gradient,) = torch.autograd.grad(logits[0, 0] + logits[1, 2], kept["attended"])
    # dA = dO V^T
    weights = (gradient @ kept["v"].transpose(2, 3)).detach().clamp(min=0)
    expected = weights.mean((1, 2))[:, 1:].reshape(2, 4, 4).numpy()
    found = maps(model, x, "legrad", block=model.block_names[-2])
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-6 * expected.max())


def test_layers_add_up(vit, x):
    """From a lower block on there is one layer more; each is asked by the head's score of its own output."""
    lower, upper = (maps(vit, x, "legrad", block=block) for block in ("blocks.0", "blocks.1"))
    assert all((one >= other - 1e-7).all() for one, other in zip(lower, upper, strict=True))
    assert any(np.abs(one - other).max() > 1e-6 for one, other in zip(lower, upper, strict=True))
    assert min(one.min() for one in lower) >= 0
    forward = run_forward(vit, x, block="blocks.2")
    with pytest.raises(ExplanationError, match=r"No block above 'blocks.2' attends"):
        attribute_each(forward, [0, 0], method="legrad")


def test_a_contrast_is_the_difference_of_relevances(vit, x):
    forward = run_forward(vit, x[:1], block="patch_embed")
    goals = [make_target(CLASSES, 0), make_target(CLASSES, 1), make_target(CLASSES, 0, 1)]
    (found,) = attribute(forward, [goals], method="attention_relevance")
    one, other, contrast = (item.values for item in found)
    np.testing.assert_allclose(one - other, contrast, atol=1e-5 * np.abs(one).max())


def test_they_are_asked_at_the_first_block_and_leave_the_model_as_it_is(vit):
    image = image_from_array(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    explainer = Explainer(vit)
    before = explainer.explain(image).predictions[0].score
    for name in NAMES:
        (found,) = explainer.explain(image, ExplainOptions(method=name)).attributions
        assert (found.block, found.values.shape) == ("patch_embed", (4, 4))
    assert explainer.explain(image).predictions[0].score == before


@pytest.mark.parametrize("name", NAMES)
def test_they_give_the_same_maps_on_a_device(vit, x, name):
    here = maps(vit, x, name)
    remote = send(copy.deepcopy(vit))
    with remote_device():
        there = maps(remote, x, name)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_networks_without_tokens_are_told_so(imagenet):
    assert set(methods_for_others(imagenet)) == set(NAMES)
    assert usable_methods(imagenet) == [name for name in METHODS if name not in NAMES]
    forward = run_forward(imagenet, torch.zeros(1, 3, 64, 64))
    for name in NAMES:
        with pytest.raises(ExplanationError, match="passes no tokens on"):
            attribute_each(forward, [0], method=name)
    image = image_from_array(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ExplanationError, match="has no attention over all tokens"):
        Explainer(imagenet).explain(image, ExplainOptions(method="legrad"))
    with_programs = adopt(small_network_of(small_vit()), classes=CLASSES, geometry=GEOMETRY, export=True)
    assert set(methods_for_others(with_programs)) == set(NAMES)


def small_network_of(model):
    """A network that a program can be made of."""
    return torch.nn.Sequential(
        *(model.block(name) for name in model.block_names), model.pool, model.classifier
    )


def test_both_are_checked_against_shuffled_weights(vit, x):
    checks = check_randomization(vit, x, methods=NAMES).methods
    assert set(checks) == set(NAMES)
    assert not any(check.disabled for check in checks.values())
