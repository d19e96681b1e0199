"""ResNet50 with SimpleBaseline's head (He et al., CVPR 2016; Xiao et al., "Simple Baselines", ECCV 2018).

Named as torchvision's and timm's ResNet and as the head in the original and MMPose's repositories.
"""

from __future__ import annotations

from torch import Tensor, nn

from deformer_core.nn.backbones.heatmaps import Maps, PoseBackbone, heatmap_layer


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution before a batch normalisation: padded, without bias."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3, 1x1 to four times the width; added to the input, projected if need be."""

    EXPANSION = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * self.EXPANSION
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.downsample(x))


def bottlenecks(inputs: int, width: int, count: int, stride: int = 1) -> nn.Sequential:
    """A stage; only its first block has the stride."""
    wide = width * Bottleneck.EXPANSION
    return nn.Sequential(Bottleneck(inputs, width, stride), *(Bottleneck(wide, width) for _ in range(count - 1)))


class ResNet(PoseBackbone):
    """depths: blocks of each stage; width: of the first stage's 3x3 convolutions; deconv: channels of the head."""

    def __init__(
        self,
        depths: tuple[int, int, int, int] = (3, 4, 6, 3),
        width: int = 64,
        deconv: int = 256,
        image_size: int = 256,
        image_width: int | None = None,
    ) -> None:
        a, b, c, d = (width * 2**stage * Bottleneck.EXPANSION for stage in range(4))
        super().__init__((a, b, c, d), image_size, image_width)
        self.conv1, self.bn1 = conv(3, width, 7, stride=2), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = bottlenecks(width, width, depths[0])
        self.layer2 = bottlenecks(a, width * 2, depths[1], stride=2)
        self.layer3 = bottlenecks(b, width * 4, depths[2], stride=2)
        self.layer4 = bottlenecks(c, width * 8, depths[3], stride=2)
        head: list[nn.Module] = []
        for inputs in (d, deconv, deconv):
            up = nn.ConvTranspose2d(inputs, deconv, 4, stride=2, padding=1, bias=False)
            nn.init.normal_(up.weight, std=0.001)
            head += [up, nn.BatchNorm2d(deconv), nn.ReLU(inplace=True)]
        self.deconv_layers = nn.Sequential(*head)
        self.final_layer = heatmap_layer(deconv)

    def extract(self, images: Tensor) -> tuple[Maps, Tensor]:
        stride4 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        stride8 = self.layer2(stride4)
        stride16 = self.layer3(stride8)
        stride32 = self.layer4(stride16)
        return (stride4, stride8, stride16, stride32), self.final_layer(self.deconv_layers(stride32))
