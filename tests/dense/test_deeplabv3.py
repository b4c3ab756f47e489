"""DeepLabv3's head is torchvision's ASPP with the branches in the release's order, and a 3x3 convolution behind."""

import torch
from torch import nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from mobilemamba.dense.deeplabv3 import DeepLabV3Head


def test_it_computes_what_torchvisions_branches_do() -> None:
    head, aspp = DeepLabV3Head([5, 6], 4, dim=8).eval(), ASPP(6, (12, 24, 36), 8).eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    theirs = [*(list(branch) for branch in aspp.convs[:4]), list(aspp.convs[4])[1:]]
    ours = [*head.aspp, head.image_pool[1]]
    for their, our in zip(theirs, ours, strict=True):
        their[0].load_state_dict(our.conv.state_dict())
        their[1].load_state_dict(our.norm.state_dict())
    aspp.project = nn.Identity()
    x = torch.randn(2, 6, 30, 41)  # wide enough for every tap of the first two dilations
    with torch.no_grad():
        views = aspp(x)
        expected = head.classifier(head.bottleneck(torch.cat([views[:, 32:], views[:, :32]], 1)))
        assert torch.allclose(head([x, x]), expected, atol=1e-6)
