"""Class activation maps: where in an image the evidence for each class is.

The last mlpconv outputs one map per class and the logits are the maps' means, so the maps localize
the classes without further training: section 4.7 and figure 4 of the paper. Zhou et al. 2016
(Learning Deep Features for Discriminative Localization) drew them over the image, with boxes.

Everything runs on the host, in numpy. Array axes: N images, H height, W width, K classes.
"""

from typing import Any

import numpy as np
from scipy import ndimage

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels; ends exclusive


def top_fraction_mask(values: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """Marks the largest `fraction` of all values, ties included: bool of the same shape.

    Values of 0 or less are never marked. Figure 4 of the paper shows "only top 10% activations".
    """
    keep = round(fraction * values.size)
    if keep == 0:
        return np.zeros(values.shape, bool)
    threshold = np.partition(values, values.size - keep, axis=None)[values.size - keep]
    return (values >= threshold) & (values > 0)


def upsample(
    maps_HWK: np.ndarray, size: tuple[int, int], stride: float, offset: float
) -> np.ndarray:
    """Bilinear interpolation of class maps to pixels: float32 (height, width, K).

    Args:
      maps_HWK: class maps, float.
      size: height and width in pixels.
      stride: pixels between the centers of neighboring cells.
      offset: the pixel at the center of the first cell. The edge is repeated beyond the outermost
        centers.
    """
    positions = [(np.arange(pixels) - offset) / stride for pixels in size]
    grid = np.meshgrid(*positions, indexing='ij')
    maps_KHW = np.moveaxis(maps_HWK.astype(np.float32), -1, 0)
    up = [ndimage.map_coordinates(map_HW, grid, order=1, mode='nearest') for map_HW in maps_KHW]
    return np.stack(up, axis=-1)


def lay_over(
    maps_HWK: np.ndarray, image_size: tuple[int, int], scale: float, stride: int
) -> np.ndarray:
    """Upsamples class maps to an image of (height, width) that is enlarged `scale` times.

    With 3x3/2 poolings that do not pad, cells are `stride` pixels apart and the center of the first
    is at pixel `stride - 1` of the image.
    """
    height, width = (max(1, round(side * scale)) for side in image_size)
    return upsample(maps_HWK, (height, width), stride * scale, (stride - 0.5) * scale - 0.5)


def evidence(maps_HWK: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """The evidence for each class beyond that for all classes: float32 (H, W, K), 0 or more.

    The maps are blurred by a Gaussian of `sigma` cells: a local average, where global average
    pooling averages over the image. Their mean over the classes, which a softmax ignores, is
    subtracted, and negative values become 0.
    """
    blurred_HWK = ndimage.gaussian_filter(maps_HWK.astype(np.float32), (sigma, sigma, 0))
    return np.maximum(blurred_HWK - blurred_HWK.mean(-1, keepdims=True), 0)


def hottest_box(heat_HW: np.ndarray, fraction: float = 0.5) -> Box | None:
    """The box around the hottest region; None for a flat map.

    The region is connected, holds the maximum, and its values are above `fraction` of the range
    from the minimum to the maximum.
    """
    low, high = float(heat_HW.min()), float(heat_HW.max())
    if not high > low:
        return None
    regions_HW = _regions(heat_HW >= low + fraction * (high - low))
    peak = np.unravel_index(np.argmax(heat_HW), heat_HW.shape)
    rows, columns = np.nonzero(regions_HW == regions_HW[peak])
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def find_objects(
    evidence_HWK: np.ndarray, fraction: float = 0.35, smallest: float = 1
) -> list[tuple[int, Box]]:
    """(class, box) of each region where the evidence for some class is strong, strongest first.

    A region is connected, and its evidence is at least `fraction` of the image's maximum. Its class
    is the one with the largest sum of evidence in it. Boxes lower or narrower than `smallest`
    pixels are left out.
    """
    strength_HW = evidence_HWK.max(-1)
    if not strength_HW.max() > 0:
        return []
    regions_HW = _regions(strength_HW >= fraction * strength_HW.max())
    found = []
    for region, (rows, columns) in enumerate(ndimage.find_objects(regions_HW), start=1):
        if min(rows.stop - rows.start, columns.stop - columns.start) < smallest:
            continue
        here_HW = regions_HW == region
        box = rows.start, columns.start, rows.stop, columns.stop
        found.append((strength_HW[here_HW].max(), int(evidence_HWK[here_HW].sum(0).argmax()), box))
    return [(k, box) for _, k, box in sorted(found, key=lambda region: -region[0])]


def _regions(mask_HW: np.ndarray) -> np.ndarray:
    """Connected regions of a mask, numbered from 1; 0 outside of them."""
    labeled: Any = ndimage.label(mask_HW)
    return labeled[0]


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion matrix: int (K, K), images of class `row` that were predicted as `column`."""
    pairs = labels_N * num_classes + predictions_N
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_mistakes(probabilities_NK: np.ndarray, labels_N: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` wrong predictions, the highest probability first."""
    wrong = np.flatnonzero(probabilities_NK.argmax(-1) != labels_N)
    return wrong[np.argsort(-probabilities_NK[wrong].max(-1), kind='stable')][:count]


def first_of_each_class(labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Index of the first image of each class that has an image, in class order."""
    classes, first = np.unique(labels_N, return_index=True)
    return first[classes < num_classes]
