"""Segmenters: counts as published, any size of picture, any backbone, and the forms for inference."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mobilemamba
from mobilemamba.analysis.complexity import complexity
from mobilemamba.dense import SEGMENTATION_HEADS, Segmenter, create_segmenter
from mobilemamba.errors import ConfigError
from mobilemamba.models import (
    ArchOverrides,
    for_inference,
    fuse_norms,
    load_weights,
    optimize_for_inference,
)
from mobilemamba.models.fuse import count_batch_norms

Tiny = Callable[..., Segmenter]

# Parameters without and with the auxiliary head, and behind the backbone; GFLOPs at 512 px, which leave the scan out;
# and multiply-adds of the convolutions behind the backbone there, by hand.
PUBLISHED = {
    "deeplabv3": (22_989_647, 23_895_013, 6_316_694, 4.688, 396_836_864),
    "pspnet": (20_564_303, 21_469_669, 3_891_350, 4.516, 225_247_232),
    "semantic_fpn": (19_758_671, 19_758_671, 2_033_152 + 1_052_566, 5.623, 1_330_905_088),
}
# Of the backbone at 512 px, as tests/analysis/test_complexity.py has them for the classifier.
SCAN = 22_364_160
BACKBONE_MACS = 4_296_339_968 - 448_000

ONE_STAGE = ArchOverrides(embed_dims=(32,), depths=(1,), global_ratio=(0.8,), local_ratio=(0.2,), kernel_sizes=(3,))


def parameters(*modules: nn.Module | None) -> int:
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_counts_are_the_published_ones(head: str) -> None:
    alone, with_auxiliary, behind, flops, macs = PUBLISHED[head]
    segmenter = mobilemamba.create_segmenter(head, "mobilemamba_b4", 150, auxiliary=head != "semantic_fpn")
    assert parameters(segmenter) == with_auxiliary
    assert parameters(segmenter.neck, segmenter.head) == behind
    segmenter.auxiliary_head = None
    counted = complexity(segmenter, 512)
    assert counted.params == alone
    # Resizing, which is not counted here, is what is left.
    assert (counted.flops - SCAN) / 1e9 == pytest.approx(flops, abs=1.5e-3)
    assert counted.macs == BACKBONE_MACS + macs


# Table 6's rivals: parameters in millions, of some with the auxiliary head, and GFLOPs.
@pytest.mark.parametrize(
    ("head", "backbone", "choices", "params", "flops"),
    [
        ("semantic_fpn", "resnet18d", {}, 15.5, 32.2),
        ("pspnet", "mobilenetv2_100", {"auxiliary": True, "head_dim": 512, "output_stride": 8}, 13.7, 53.1),
        ("deeplabv3", "emo_1m", {"auxiliary": True}, 5.6, 2.4),
    ],
)
def test_counts_of_rivals(head: str, backbone: str, choices: dict[str, Any], params: float, flops: float) -> None:
    counted = complexity(create_segmenter(head, backbone, 150, **choices), 512)
    assert counted.params / 1e6 == pytest.approx(params, abs=0.06)
    assert counted.flops / 1e9 == pytest.approx(flops, rel=0.025)  # printed to two digits, and with resizing


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
@pytest.mark.parametrize("backbone", ["mobilemamba_s6", "efficientvit_m5", "mobilenetv2_100", "resnet18"])
def test_any_backbone_and_any_size(tiny: Tiny, head: str, backbone: str) -> None:
    segmenter = tiny(head, backbone, auxiliary=True)
    with torch.no_grad():
        assert segmenter(torch.randn(1, 3, 70, 93)).shape == (1, 7, 70, 93)
    segmenter.train()
    sum(logits.square().mean() for logits in segmenter.forward_heads(torch.randn(2, 3, 64, 65))).backward()
    untouched = [name for name, p in segmenter.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched


def test_logits_are_the_heads_resized(tiny: Tiny) -> None:
    segmenter, pictures = tiny("pspnet", auxiliary=True), torch.randn(2, 3, 70, 96)
    with torch.no_grad():
        maps = segmenter.backbone(pictures)
        expected = [
            F.interpolate(head(maps), (70, 96), mode="bilinear") for head in (segmenter.head, segmenter.auxiliary_head)
        ]
        logits, auxiliary = segmenter.forward_heads(pictures)
        assert torch.equal(segmenter(pictures), logits)
    assert logits.is_contiguous(memory_format=torch.channels_last)  # where the best class is found soonest
    assert torch.allclose(logits, expected[0], atol=1e-6)
    assert torch.allclose(auxiliary, expected[1], atol=1e-6)
    segmenter.auxiliary_head = None
    assert len(segmenter.forward_heads(pictures)) == 1


def test_a_dilated_backbone_has_a_finer_last_map() -> None:
    segmenter = create_segmenter("pspnet", "mobilenetv2_100", 3, head_dim=8, output_stride=8).eval()
    with torch.no_grad():
        assert [x.shape[-1] for x in segmenter.backbone(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 8, 8]


@pytest.mark.parametrize("head", SEGMENTATION_HEADS)
def test_folded_and_laid_out_it_answers_the_same(tiny: Tiny, head: str) -> None:
    segmenter, pictures = tiny(head, auxiliary=True), torch.randn(2, 3, 70, 93)
    fused = fuse_norms(segmenter)
    assert count_batch_norms(segmenter) > 50
    assert count_batch_norms(fused) == 0
    fastest, how = for_inference(segmenter, torch.device("cpu"))
    assert how == "optimized for inference"
    with torch.no_grad():
        expected = segmenter(pictures)
        for other in (fused, fastest, optimize_for_inference(segmenter)):
            assert isinstance(other, Segmenter)
            assert (other(pictures) - expected).norm() < 1e-5 * expected.norm()


def test_a_fused_segmenters_weights_load_into_a_fresh_one(tiny: Tiny) -> None:
    segmenter, fresh, pictures = tiny("deeplabv3"), tiny("deeplabv3"), torch.randn(1, 3, 64, 64)
    nn.init.zeros_(fresh.head.classifier[-1].weight)
    assert load_weights(fresh, fuse_norms(segmenter).state_dict(), verbose=False).complete
    with torch.no_grad():
        assert (fresh(pictures) - segmenter(pictures)).norm() < 1e-4 * segmenter(pictures).norm()


def test_other_classes_start_afresh(tiny: Tiny) -> None:
    segmenter = tiny("pspnet", auxiliary=True)
    other = tiny("pspnet", auxiliary=True)
    for head in (other.head, other.auxiliary_head):
        head.classifier[-1] = nn.Conv2d(head.classifier[-1].in_channels, 4, 1)
    report = load_weights(other, segmenter.state_dict(), new_head=True, verbose=False)
    assert report.complete
    assert [line.split(":")[0] for line in report.fresh_heads] == ["head.classifier.1", "auxiliary_head.classifier.1"]
    assert not other(torch.randn(1, 3, 32, 32)).any()


def test_norms_of_heads_alone_can_be_synchronised(tiny: Tiny) -> None:
    segmenter, pictures = tiny("semantic_fpn"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = segmenter(pictures)
        segmenter.head = nn.SyncBatchNorm.convert_sync_batchnorm(segmenter.head)
        assert torch.allclose(segmenter.eval()(pictures), expected, atol=1e-6)
        assert count_batch_norms(fuse_norms(segmenter)) == 0


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"head": "pspnets"}, "head 'pspnets': expected one of: deeplabv3, pspnet, semantic_fpn; did you mean pspnet?"),
        ({"head": "unet"}, "head 'unet': expected one of: deeplabv3, pspnet, semantic_fpn"),
        ({"num_classes": 0}, "num_classes=0: expected 1 or more"),
        ({"head_dim": 0}, "head_dim=0: expected 1 or more"),
        ({"backbone": "mobilemamba_s7"}, "did you mean mobilemamba_s6"),
        ({"backbone": "hardcorenas_a"}, "model 'hardcorenas_a' gives no feature maps for a head"),
        ({"backbone": "vgg11", "output_stride": 8}, "model 'vgg11' gives no maps with output_stride=8; choose another"),
        (
            {"backbone": "mobilenetv2_100", "output_stride": 12},
            "output_stride=12: the last map of mobilenetv2_100 has stride 8; leave it out",
        ),
        ({"backbone": "resnet18", "arch": ArchOverrides(d_state=2)}, "arch.d_state: only the mobilemamba"),
        (
            {"arch": ONE_STAGE, "auxiliary": True},
            "auxiliary=True: it reads the last map but one, and mobilemamba_t2 gives",
        ),
        ({"arch": ONE_STAGE, "head": "semantic_fpn"}, "semantic_fpn joins 2 maps or more of stride 4 and above"),
        ({"output_stride": 32}, "output_stride=32: mobilemamba_t2 has no such option; leave it out"),
    ],
)
def test_a_choice_that_cannot_be(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        create_segmenter(**{"head": "pspnet", "backbone": "mobilemamba_t2", "num_classes": 2, **choices})


def test_pictures_too_small_or_too_few(tiny: Tiny) -> None:
    segmenter = tiny("pspnet")
    with pytest.raises(ConfigError, match="pictures of 31 x 64 px: expected 32 a side or more"):
        segmenter(torch.randn(1, 3, 64, 31))
    with pytest.raises(ConfigError, match=r"pictures of 64 x 48 px do not suit the backbone: .*224"):
        create_segmenter("pspnet", "vit_tiny_patch16_224", 2).eval()(torch.randn(1, 3, 48, 64))
    with pytest.raises(ConfigError, match="a batch of one picture of 96 x 96 px: the norms"):
        segmenter.train()(torch.randn(1, 3, 96, 96))
