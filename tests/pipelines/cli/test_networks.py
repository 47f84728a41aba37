"""The list of networks, and training one of a library by its name."""

from __future__ import annotations

import mlflow
import timm
import torch


def test_the_table_is_listed_with_blocks_and_grad_cam_block(at_once):
    printed = at_once("networks").stdout
    assert "efficientnet_lite0" in printed
    assert "layers.10" in printed
    assert "networks of torchvision and timm" in printed


def test_a_family_is_cut_as_far_as_asked_and_the_rest_is_named(at_once):
    printed = " ".join(at_once("networks", "--family", "test_res", "--most", "1").stdout.split())
    assert "timm:test_resnet" in printed
    assert "Not cut, as 1 were (--most)" in at_once("networks", "--family", "test_", "--most", "1").stdout
    unknown = at_once("networks", "--family", "nothing_like_it")
    assert unknown.returncode == 1
    assert "Unknown family" in unknown.stderr


def test_a_network_of_timm_is_fine_tuned_from_a_file_and_what_was_mended_is_said(
    at_once, in_tmp, butterflies
):
    torch.manual_seed(0)
    state = timm.create_model("test_resnet", num_classes=9).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, "w.pth")
    done = at_once(
        "train", "--data", str(butterflies), "--backbone", "timm:test_resnet", "--weights", "w.pth",
        "--name", "wings", "--preset", "quick", "--set", "sanity=none",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The prefix 'module.' was taken off" in done.stdout
    assert "are not those of the file, and begin anew" in " ".join(done.stdout.split())
    (run,) = mlflow.search_runs(
        experiment_names=["camera-lucida"], filter_string="params.backbone = 'timm:test_resnet'",
        output_format="list",
    )  # fmt: skip
    assert run.info.status == "FINISHED"
    assert at_once("promote", "wings").returncode == 0


def test_a_backbone_that_does_not_exist_is_named_with_close_ones(at_once, butterflies):
    done = at_once("train", "--data", str(butterflies), "--backbone", "timm:test_resnett")
    assert done.returncode == 1
    assert "test_resnet" in done.stderr
