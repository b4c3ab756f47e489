"""Mask R-CNN (He et al., 2017): proposes regions, then finds the class, box and mask of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead

from mobilemamba.dense.anchors import Anchors, boxes_of_ratios
from mobilemamba.dense.boxes import IGNORED, BoxCoder, Wanted, above, assign, by_anchor, keep_best, wanted
from mobilemamba.dense.detector import Detector, Sizes, padded, sizes_of, sizes_of_targets
from mobilemamba.dense.regions import cut_masks, pool_regions
from mobilemamba.dense.release_names import MASK_RCNN, Names
from mobilemamba.errors import ConfigError

_BOX_SIDE = 7  # of the box head's input
_MASK_SIDE = 14  # of the mask head's input; masks have twice this side
_READ = 4  # levels that regions are read from; the coarsest level is only for proposals


class BoxHead(nn.Module):
    """Maps regions (n, D, 7, 7) to logits (n, classes + 1), the background's last, and to one box's codes per class.

    torchvision's head has the background first, and a box for it.

    Args:
        in_chans: Channels D.
        num_classes: Classes.
        dim: Width.
    """

    def __init__(self, in_chans: int, num_classes: int, dim: int):
        super().__init__()
        self.shared = TwoMLPHead(in_chans * _BOX_SIDE**2, dim)
        self.classes = nn.Linear(dim, num_classes + 1)
        self.codes = nn.Linear(dim, 4 * num_classes)
        nn.init.xavier_uniform_(self.shared.fc6.weight)
        nn.init.xavier_uniform_(self.shared.fc7.weight)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.normal_(self.codes.weight, std=0.001)
        for layer in (self.shared.fc6, self.shared.fc7, self.classes, self.codes):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.shared(x)
        return self.classes(x), self.codes(x).unflatten(1, (-1, 4))


class MaskRCNN(Detector):
    """Mask R-CNN with torchvision's heads; ``detect`` also returns ``masks`` (n, 28, 28), probabilities in the boxes.

    :func:`~mobilemamba.dense.regions.paste_masks` turns them into masks of the picture. Unlike in torchvision, regions
    are read with ``aligned`` and adaptive sampling, boxes are learned by an L1 loss, and the background has neither box
    nor mask.

    Args:
        backbone: Maps pictures to a list of maps.
        neck: Maps these to five levels, the finest first.
        strides: Strides of the levels.
        num_classes: Classes without the background.
        dim: Channels of the levels, and width of the mask head; the box head is four times as wide.
        options: Further options of :class:`~mobilemamba.dense.detector.Detector`.
    """

    release_names: Names = MASK_RCNN
    score_threshold = 0.05
    max_boxes = 100
    overlap = 0.5
    training_candidates = 2000  # the most proposals of a level before suppression, in training
    candidates = 1000  # the same otherwise
    proposals = 1000  # the most of a picture after suppression
    proposal_overlap = 0.7  # intersection over union above which suppression removes a proposal
    anchor_samples = 256  # anchors of a picture that training samples
    anchor_share = 0.5  # largest share of positives among them
    region_samples = 512  # proposals of a picture that training samples
    region_share = 0.25  # largest share of positives among them

    def __init__(
        self, backbone: nn.Module, neck: nn.Module, strides: Sequence[int], num_classes: int, dim: int, **options: Any
    ):
        super().__init__(backbone, neck, num_classes, **options)
        self.anchors = Anchors(strides, [boxes_of_ratios([8 * stride]) for stride in strides])
        self.rpn = RPNHead(dim, self.anchors.per_cell)
        self.box_head = BoxHead(dim, num_classes, 4 * dim)
        self.mask_head = MaskRCNNHeads(dim, [dim] * 4, dilation=1)
        self.mask_predictor = MaskRCNNPredictor(dim, dim, num_classes)
        self.anchor_coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns logits (B, N) and box codes (B, N, 4) of anchors, by level, row, column and anchor; and the levels.

        The regions are then for ``box_head``, and for ``mask_head`` followed by ``mask_predictor``.
        """
        levels = self.levels(images)
        return (*self._rpn(levels), *levels)

    def busiest(self, images: Tensor) -> tuple[Tensor, ...]:
        """Runs the most that a batch can need, all proposals and a mask for every box, so that it can be counted."""
        levels = self.levels(images)
        channels, count = levels[0].shape[1], len(images)
        regions = levels[0].new_zeros(count * self.proposals, channels, _BOX_SIDE, _BOX_SIDE)
        masks = levels[0].new_zeros(count * self.max_boxes, channels, _MASK_SIDE, _MASK_SIDE)
        return (*self._rpn(levels), *self.box_head(regions), self._masks(masks))

    def losses(self, images: Tensor, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        levels = self.levels(images)
        logits, codes = (x.float() for x in self._rpn(levels))
        grids = [(x.shape[-2], x.shape[-1]) for x in levels]
        anchors = self.anchors(grids, images.device)
        expected = [wanted(target, self.num_classes) for target in targets]
        sizes = sizes_of_targets(images, targets)
        losses = self._rpn_losses(logits, codes, grids, torch.cat(anchors), sizes, expected)
        proposals = self._propose(logits.detach(), codes.detach(), anchors, grids, sizes, self.training_candidates)
        regions, labels, found, matches = [], [], [], []
        for own, proposed in zip(expected, proposals, strict=True):
            # Every target box is also a proposal.
            candidates = torch.cat((own.boxes, proposed))
            match = assign(proposed, own.boxes, positive=0.5, negative=0.5, lowest=0.5)
            match = torch.cat((torch.arange(len(own.boxes), device=match.device), match))
            here, others = _sample(match, self.region_samples, self.region_share)
            regions.append(candidates[torch.cat((here, others))])
            labels.append(F.pad(own.labels[match[here]], (0, len(others)), value=self.num_classes))
            found.append(candidates[here])
            matches.append(match[here])
        losses |= self._box_losses(levels, regions, torch.cat(labels), found, matches, expected)
        masks = [_padded_masks(target, own.places, images) for target, own in zip(targets, expected, strict=True)]
        cuts = [cut_masks(*cut, 2 * _MASK_SIDE) for cut in zip(masks, matches, found, strict=True)]
        classes = torch.cat([own.labels[match] for own, match in zip(expected, matches, strict=True)])
        return losses | {"mask": self._mask_loss(levels, found, classes, torch.cat(cuts))}

    @torch.no_grad()
    def detect(self, images: Tensor, sizes: Sizes | None = None) -> list[dict[str, Tensor]]:
        levels = self.levels(images)
        grids = [(x.shape[-2], x.shape[-1]) for x in levels]
        anchors = self.anchors(grids, images.device)
        given = sizes_of(images, sizes)
        logits, codes = (x.float() for x in self._rpn(levels))
        proposals = self._propose(logits, codes, anchors, grids, given, self.candidates)
        classes, codes = (x.float() for x in self.box_head(self._regions(levels, proposals, _BOX_SIDE)))
        counts = [len(boxes) for boxes in proposals]
        detections = []
        pictures = zip(proposals, classes.softmax(1)[:, :-1].split(counts), codes.split(counts), given, strict=True)
        for boxes, scores, code, size in pictures:
            score, at, label = above(scores, self.score_threshold, scores.numel())
            decoded = self.coder.decode_single(code[at, label], boxes[at])
            detections.append(keep_best(decoded, score, label, size, self.overlap, self.max_boxes))
        found = [detection["boxes"] for detection in detections]
        labels = torch.cat([detection["labels"] for detection in detections])
        masks = self._masks_of(levels, found, labels).sigmoid()
        for detection, mask in zip(detections, masks.split([len(boxes) for boxes in found]), strict=True):
            detection["masks"] = mask
        return detections

    def get_classifier(self) -> tuple[nn.Module, ...]:
        return self.box_head.classes, self.box_head.codes, self.mask_predictor.mask_fcn_logits

    def _rpn(self, levels: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, codes = self.rpn(levels)
        return by_anchor(logits, 1)[..., 0], by_anchor(codes, 4)

    def _regions(self, levels: list[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        return pool_regions(levels[:_READ], self.anchors.strides[:_READ], boxes, side)

    def _masks(self, regions: Tensor) -> Tensor:
        return self.mask_predictor(self.mask_head(regions))

    def _masks_of(self, levels: list[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Returns the mask logits (n, 28, 28) of each picture's boxes (n_i, 4), for their labels (n,)."""
        masks = self._masks(self._regions(levels, boxes, _MASK_SIDE)).float()
        return masks[torch.arange(len(labels), device=labels.device), labels]

    def _propose(
        self,
        logits: Tensor,
        codes: Tensor,
        anchors: list[Tensor],
        grids: list[tuple[int, int]],
        sizes: list[tuple[int, int]],
        candidates: int,
    ) -> list[Tensor]:
        """Returns the boxes (n, 4) of each picture that may hold an object."""
        lengths, joined = [len(level) for level in anchors], torch.cat(anchors)
        starts = [0, *accumulate(lengths[:-1])]
        proposals = []
        for picture, size in enumerate(sizes):
            # What lies beyond a picture, between larger ones, proposes nothing, as it was never trained.
            part = padded(size, self.divisor)
            inside = self.anchors.within(grids, part, logits.device)
            by_level = logits[picture].masked_fill(~inside, -torch.inf).split(lengths)
            scores, places, of_level = [], [], []
            for i, (logit, start, count) in enumerate(
                zip(by_level, starts, self.anchors.counts(grids, part), strict=True)
            ):
                score, at = logit.topk(min(candidates, count))
                scores.append(score)
                places.append(at + start)
                of_level.append(torch.full_like(at, i))
            at = torch.cat(places)
            boxes = self.anchor_coder.decode_single(codes[picture, at], joined[at])
            found = boxes, torch.cat(scores), torch.cat(of_level)
            proposals.append(keep_best(*found, size, self.proposal_overlap, self.proposals)["boxes"])
        return proposals

    def _rpn_losses(
        self,
        logits: Tensor,
        codes: Tensor,
        grids: list[tuple[int, int]],
        anchors: Tensor,
        sizes: Sequence[tuple[int, int]],
        expected: Sequence[Wanted],
    ) -> dict[str, Tensor]:
        objectness = box = logits.new_zeros(())
        count = 0
        for size, own, logit, code in zip(sizes, expected, logits, codes, strict=True):
            found = assign(anchors, own.boxes, positive=0.7, negative=0.3, lowest=0.3)
            found[~self.anchors.within(grids, padded(size, self.divisor), logits.device)] = IGNORED
            here, others = _sample(found, self.anchor_samples, self.anchor_share)
            objectness = objectness + F.softplus(-logit[here]).sum() + F.softplus(logit[others]).sum()
            offsets = self.anchor_coder.encode_single(own.boxes[found[here]], anchors[here])
            box = box + (code[here] - offsets).abs().sum()
            count += max(1, len(here)) + max(1, len(others))
        return {"objectness": objectness / count, "proposal": box / count}

    def _box_losses(
        self,
        levels: list[Tensor],
        regions: list[Tensor],
        labels: Tensor,
        found: list[Tensor],
        matches: list[Tensor],
        expected: Sequence[Wanted],
    ) -> dict[str, Tensor]:
        logits, codes = (x.float() for x in self.box_head(self._regions(levels, regions, _BOX_SIDE)))
        count = max(1, len(labels))
        here = (labels < self.num_classes).nonzero().squeeze(1)
        boxes = torch.cat([own.boxes[match] for own, match in zip(expected, matches, strict=True)])
        offsets = self.coder.encode_single(boxes, torch.cat(found))
        return {
            "class": F.cross_entropy(logits, labels, reduction="sum") / count,
            "box": F.l1_loss(codes[here, labels[here]], offsets, reduction="sum") / count,
        }

    def _mask_loss(self, levels: list[Tensor], found: list[Tensor], labels: Tensor, expected: Tensor) -> Tensor:
        logits = self._masks_of(levels, found, labels)
        return F.binary_cross_entropy_with_logits(logits, expected, reduction="sum") / max(1, expected.numel())


def _sample(found: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Returns the indices of randomly sampled positives and negatives."""
    (here,), (others,) = BalancedPositiveNegativeSampler(count, share)([found + 1])
    return here.nonzero().squeeze(1), others.nonzero().squeeze(1)


def _padded_masks(target: Mapping[str, Any], places: Tensor, images: Tensor) -> Tensor:
    """Returns the masks (n, H, W) of the boxes to be found, padded to the batch's size."""
    if "masks" not in target:
        raise ConfigError("a target has no masks, and mask_rcnn is to find them; give masks, or choose another head")
    masks = target["masks"][places]
    return F.pad(masks, (0, images.shape[-1] - masks.shape[-1], 0, images.shape[-2] - masks.shape[-2]))
