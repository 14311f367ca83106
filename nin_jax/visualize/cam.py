"""Class activation maps: the evidence for each class at each position of an image.

The last mlpconv outputs one map per class, and the logits are the means of the maps. So the maps
localize the classes without further training: section 4.7 and figure 4 of the paper. Zhou et al.
2016 (Learning Deep Features for Discriminative Localization) drew them over the image, with boxes.

All functions use NumPy on the host. Array axes: N images, H height, W width, K classes.
"""

from typing import Any

import numpy as np
from scipy import ndimage

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels; ends exclusive


def top_fraction_mask(values: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """Returns a mask of the largest `fraction` of all values, including ties; never of values <= 0.

    Figure 4 of the paper shows "only top 10% activations".
    """
    keep = round(fraction * values.size)
    if keep == 0:
        return np.zeros(values.shape, bool)
    threshold = np.partition(values, values.size - keep, axis=None)[values.size - keep]
    return (values >= threshold) & (values > 0)


def lay_over(
    maps_HWK: np.ndarray, image_size: tuple[int, int], scale: float, stride: int
) -> np.ndarray:
    """Upsamples class maps to an image of (height, width), enlarged by `scale`: float32 (H, W, K).

    The interpolation is bilinear; beyond the outermost cells, the values of the edge are repeated.
    With 3x3/2 poolings without padding, cells are `stride` pixels apart, and the center of the
    first cell is pixel `stride - 1` of the image.
    """
    first = (stride - 0.5) * scale - 0.5  # pixel at the center of the first cell
    sizes = (max(1, round(side * scale)) for side in image_size)
    positions = [(np.arange(pixels) - first) / (stride * scale) for pixels in sizes]
    grid = np.meshgrid(*positions, indexing='ij')
    maps_KHW = np.moveaxis(maps_HWK.astype(np.float32), -1, 0)
    up = [ndimage.map_coordinates(map_HW, grid, order=1, mode='nearest') for map_HW in maps_KHW]
    return np.stack(up, axis=-1)


def evidence(maps_HWK: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """Returns the evidence for each class relative to the other classes, float32 (H, W, K), >= 0.

    The maps are averaged locally, with a Gaussian of `sigma` cells. Their mean over the classes,
    which has no effect on a softmax, is subtracted, and negative values become 0.
    """
    blurred_HWK = ndimage.gaussian_filter(maps_HWK.astype(np.float32), (sigma, sigma, 0))
    return np.maximum(blurred_HWK - blurred_HWK.mean(-1, keepdims=True), 0)


def hottest_box(heat_HW: np.ndarray, fraction: float = 0.5) -> Box | None:
    """Returns the box around the region of the maximum; None for a constant map.

    The region is connected. Its values are above `fraction` of the range from the minimum to the
    maximum.
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
    """Returns (class, box) of each region with strong evidence for a class, strongest first.

    A region is connected, and its evidence is at least `fraction` of the image's maximum. Its class
    is the one with the largest sum of evidence in it. Boxes with a side below `smallest` pixels are
    omitted.
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
    """Labels the connected regions of a mask with 1, 2, ...; 0 is the background."""
    labeled: Any = ndimage.label(mask_HW)
    return labeled[0]


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the confusion matrix, int (K, K): rows are true classes, columns predictions."""
    pairs = labels_N * num_classes + predictions_N
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_mistakes(probabilities_NK: np.ndarray, labels_N: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of up to `count` wrong predictions, highest probability first."""
    wrong = np.flatnonzero(probabilities_NK.argmax(-1) != labels_N)
    return wrong[np.argsort(-probabilities_NK[wrong].max(-1), kind='stable')][:count]


def first_of_each_class(labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the index of the first image of each class, in class order."""
    classes, first = np.unique(labels_N, return_index=True)
    return first[classes < num_classes]
