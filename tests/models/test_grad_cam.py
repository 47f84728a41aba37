from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam

from models import images
from models.backbones import BACKBONES, backbone, imagenet_classes
from models.errors import ExplanationError, UnknownChoice
from models.explain.activations import activations
from models.explain.attribution import classify
from models.explain.grad_cam import grad_cam, grad_cam_batch, look
from models.transfer import TransferModel


def model_of(name: str) -> TransferModel:
    torch.manual_seed(0)
    row = backbone(name)
    network = row.network("imagenet" if name == "efficientnet_lite0" else "none")
    return TransferModel(row, network, classes=imagenet_classes(), keep_classifier=True).eval()


def batch(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 224, 224, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", BACKBONES)
def test_equal_to_captum_on_the_whole_uncut_model(name):
    model = model_of(name)
    x = batch()
    for block in (model.cam_block, model.block_names[len(model.block_names) // 2]):
        module = model.blocks[block.replace(".", "_")]
        for target in (3, 700):
            whole = LayerGradCam(model, module).attribute(x.clone().requires_grad_(), target=target)
            ours = grad_cam(model, look(model, x, block=block), 0, [target])[0]
            scale = float(whole.detach().abs().max()) or 1.0
            np.testing.assert_allclose(ours.values, whole[0, 0].detach().numpy(), atol=1e-5 * scale)


def test_equal_to_the_formula_by_plain_autograd(imagenet):
    x = batch(seed=4)
    evidence = look(imagenet, x)
    activation = evidence.activation.clone().requires_grad_()
    imagenet.after(imagenet.cam_block, activation)[0, 207].backward()
    alpha = activation.grad.mean(dim=(2, 3), keepdim=True)
    expected = (alpha * evidence.activation).sum(1)[0].numpy()
    np.testing.assert_allclose(grad_cam(imagenet, evidence, 0, [207])[0].values, expected, atol=1e-6)


def test_on_a_pooled_last_block_it_is_class_activation_mapping():
    """Zhou et al. 2016: with average pooling and one linear layer the map is the weighted sum over h * w."""
    model = model_of("resnet18")
    evidence = look(model, batch(seed=5))
    weights = model.classifier.weight[123].detach()
    expected = torch.einsum("c,chw->hw", weights, evidence.activation[0]) / 49
    np.testing.assert_allclose(grad_cam(model, evidence, 0, [123])[0].values, expected.numpy(), atol=1e-6)


def test_many_targets_and_batches_equal_one_at_a_time(imagenet):
    x = batch(3, seed=6)
    evidence = look(imagenet, x)
    together = grad_cam(imagenet, evidence, 1, [5, 9, 800])
    for target, found in zip([5, 9, 800], together, strict=True):
        alone = grad_cam(imagenet, look(imagenet, x[1:2]), 0, [target])[0]
        np.testing.assert_allclose(found.values, alone.values, atol=1e-5)
        assert (found.index, found.label) == (target, imagenet.classes[target])
    for item, found in enumerate(grad_cam_batch(imagenet, evidence, [5, 9, 800])):
        alone = grad_cam(imagenet, evidence, item, [[5, 9, 800][item]])[0]
        np.testing.assert_allclose(found.values, alone.values, atol=1e-6)


def test_eight_threads_on_one_model_give_no_error_and_no_wrong_map(imagenet):
    jobs = [
        (seed % 6, target, block) for seed in range(12) for target in (1, 2) for block in ("top", "stage6.1")
    ] * 5
    xs = [batch(seed=seed) for seed in range(6)]

    def explain(job: tuple[int, int, str]) -> np.ndarray:
        seed, target, block = job
        return grad_cam(imagenet, look(imagenet, xs[seed], block=block), 0, [target])[0].values

    alone = {job: explain(job) for job in set(jobs)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(explain, jobs))
    assert len(together) == 240
    wrong = [
        job for job, values in zip(jobs, together, strict=True) if not np.array_equal(values, alone[job])
    ]
    assert wrong == []


def test_nothing_is_left_on_the_model(imagenet):
    before = {
        name: (module.training, len(module._forward_hooks)) for name, module in imagenet.named_modules()
    }
    for _ in range(3):
        grad_cam(imagenet, look(imagenet, batch()), 0, [1])
    with pytest.raises(UnknownChoice):
        grad_cam(imagenet, look(imagenet, batch()), 0, [100_000])
    after = {name: (module.training, len(module._forward_hooks)) for name, module in imagenet.named_modules()}
    assert before == after
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in imagenet.parameters())
    gc.collect()
    graphs = [
        each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.grad_fn is not None
    ]
    assert not graphs


def test_the_map_lies_on_the_animal(imagenet, photos):
    """Energy in the object's mask against the mask's area, on real photographs with the true class."""
    energies, areas = [], []
    for path in sorted((photos / "caltech_animals/val/flamingo").glob("*.jpg")):
        image = images.read(path)
        mask = images.read(photos / "caltech_animals/masks/val/flamingo" / f"{path.stem}.png").pil
        x, frame = imagenet.geometry.prepare(image)
        found = grad_cam(imagenet, look(imagenet, x[None]), 0, [imagenet.classes.index("flamingo")])[0]
        laid = np.nan_to_num(frame.unwarp(found.positive()))
        inside = np.asarray(mask)[..., 0] > 127
        energies.append(laid[inside].sum() / max(laid.sum(), 1e-9))
        areas.append(inside[frame.seen()].mean())
    assert np.mean(energies) > np.mean(areas) + 0.15


def test_statuses_never_leave_a_blank_map_without_a_word():
    assert classify(np.array([[-1.0, -2.0]]))[0] == "no_positive_evidence"
    assert classify(np.zeros((2, 2)))[0] == "no_gradient"
    status, shown = classify(np.array([[np.nan, 1.0]]))
    assert status == "not_finite"
    assert np.isfinite(shown).all()
    assert classify(np.array([[-1.0, 0.5]]))[0] == "ok"


def test_a_dead_head_is_called_no_gradient():
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    torch.nn.init.zeros_(model.classifier.weight)
    found = grad_cam(model, look(model, batch()), 0, [0])[0]
    assert found.status == "no_gradient"
    assert not found.values.any()


def test_blocks_that_are_no_map_and_unknown_names_are_refused(imagenet):
    with pytest.raises(UnknownChoice, match="stage6"):
        look(imagenet, batch(), block="layer4")
    with pytest.raises(ExplanationError, match="no map"):
        look(imagenet, torch.zeros(1, 3, 32, 32))


def test_activations_are_what_the_blocks_give(imagenet):
    x = batch(seed=8)
    found = activations(imagenet, x, blocks=["top", "stem"], channels=3)
    assert [each.block for each in found] == ["stem", "top"]
    with torch.no_grad():
        value = imagenet.until("top", x)[0]
    top = found[1]
    assert top.shape == (1280, 7, 7)
    assert top.mean == pytest.approx(float(value.mean()), rel=1e-5)
    assert top.zero_share == pytest.approx(float((value == 0).float().mean()))
    strongest = value.mean(dim=(1, 2)).topk(3).indices.tolist()
    assert [channel.index for channel in top.strongest] == strongest
    np.testing.assert_array_equal(top.strongest[0].values, value[strongest[0]].numpy())
