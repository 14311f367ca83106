"""A config's network, update and training step in PyTorch, through PyTorch's public interface."""

import itertools

import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional as F


def make_blocks(config: ConfigDict, channels: int) -> list[nn.Sequential]:
    """Returns the mlpconv layers, each with its pooling and dropout, for images of `channels`."""
    blocks, rows = [], list(config.model.blocks.values())
    for row in rows:
        layers = []
        for i, features in enumerate(row.features):
            kernel = row.kernel if i == 0 else 1
            class_maps = row is rows[-1] and i == len(row.features) - 1
            norm = config.model.norm == 'batch' and not class_maps
            conv = nn.Conv2d(channels, features, kernel, padding=kernel // 2, bias=not norm)
            if row.init_std:
                nn.init.normal_(conv.weight, std=row.init_std[i])
            else:
                nn.init.kaiming_normal_(conv.weight)
            layers.append(conv)
            if norm:
                layers.append(nn.BatchNorm2d(features))
                layers[-1].weight.requires_grad_(False)  # ours has a shift and no scale
            else:
                nn.init.zeros_(conv.bias)
            if not class_maps or config.model.class_maps == 'relu':
                layers.append(nn.ReLU(inplace=True))
            channels = features
        if row.pool == 'max':
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
        if row.dropout:
            layers.append(nn.Dropout(row.dropout))
        blocks.append(nn.Sequential(*layers))
    return blocks


def as_matrix(kernel_OIHW: torch.Tensor) -> torch.Tensor:
    """Returns a kernel as a matrix with a row per output: a view, in both memory formats."""
    if kernel_OIHW.is_contiguous():
        return kernel_OIHW.flatten(1)
    return kernel_OIHW.permute(0, 2, 3, 1).flatten(1)


class Update:
    """The optimizer of a config, with a constant learning rate."""

    def __init__(self, config: ConfigDict, blocks: list[nn.Sequential]):
        modules = [module for block in blocks for module in block]
        convs = [  # each with what follows: the shift of batch normalization is the bias
            (module, after)
            for module, after in itertools.pairwise([*modules, None])
            if isinstance(module, nn.Conv2d)
        ]
        optim = config.optim
        self.kernels = [conv.weight for conv, _ in convs]
        scales = [*[1.0] * (len(convs) - 1), optim.last_layer_lr]
        biases = [
            {
                'params': [after.bias if conv.bias is None else conv.bias],
                'lr': scale * optim.lr * optim.bias_lr,
            }
            for (conv, after), scale in zip(convs, scales, strict=True)
        ]
        # PyTorch's Muon takes matrices: views of the kernels' memory.
        muon = optim.rule == 'muon'
        self.weights = [
            nn.Parameter(as_matrix(kernel.detach())) if muon else kernel for kernel in self.kernels
        ]
        weights = [
            {'params': [weight], 'lr': scale * optim.lr, 'weight_decay': optim.weight_decay}
            for weight, scale in zip(self.weights, scales, strict=True)
        ]
        if muon:
            self.optimizers = [
                torch.optim.Muon(weights, momentum=optim.momentum),
                torch.optim.NAdam(biases),
            ]
        else:
            nesterov = optim.rule == 'nesterov'
            self.optimizers = [
                torch.optim.SGD([*weights, *biases], momentum=optim.momentum, nesterov=nesterov)
            ]

    def step(self) -> None:
        """Updates the parameters by their gradients, and clears these."""
        for kernel, weight in zip(self.kernels, self.weights, strict=True):
            if weight is not kernel:
                weight.grad = None if kernel.grad is None else as_matrix(kernel.grad)
                kernel.grad = None
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def train_step(
    network, update: Update, images: torch.Tensor, labels: torch.Tensor, config: ConfigDict
) -> None:
    """Takes one step: augmentation, the gradients of all microbatches, the update."""
    batch, size = len(images), config.train.microbatch or len(images)
    x = crop_and_flip(images, config.augment.crop_pad, config.augment.flip)
    for piece, target in zip(x.split(size), labels.split(size), strict=True):
        smoothing = config.augment.label_smoothing
        loss = F.cross_entropy(network(piece), target, label_smoothing=smoothing, reduction='sum')
        (loss / batch).backward()
    update.step()


def crop_and_flip(images: torch.Tensor, pad: int, flip: bool) -> torch.Tensor:
    """Returns a random crop of each padded image, mirrored with probability 1/2 if `flip`."""
    count, _, height, width = images.shape
    device, everything = images.device, torch.arange(count, device=images.device)
    if pad:
        windows = F.pad(images, [pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * pad + 1, (2, count), device=device)
        images = windows[everything, :, down, right]
    if flip:
        mirrored = torch.rand(count, 1, 1, 1, device=device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images
