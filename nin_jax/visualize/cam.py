"""Class activation maps: where in a picture the network sees what.

The last mlpconv puts out one map per class and the logits are the maps' means, so the maps are
there for the looking: section 4.7 and figure 4 of the paper. Zhou et al. (Learning Deep Features
for Discriminative Localization, 2016) laid them over the picture and drew boxes around what is hot.

All on the host, in numpy. Array axes: N images, H height, W width, K classes.
"""

import numpy as np
from scipy import ndimage


def top_fraction_mask(values: np.ndarray, fraction: float = 0.1) -> np.ndarray:
    """Marks the greatest `fraction` of all values, ties included: bool of the same shape.

    A value of 0 or less is no activation and never marked. Figure 4 shows "only top 10%
    activations".
    """
    keep = round(fraction * values.size)
    if keep == 0:
        return np.zeros(values.shape, bool)
    threshold = np.partition(values, values.size - keep, axis=None)[values.size - keep]
    return (values >= threshold) & (values > 0)


def upsample(
    maps_HWK: np.ndarray, size: tuple[int, int], stride: float, offset: float
) -> np.ndarray:
    """Bilinear: float32 (height, width, K), each cell centred on the pixel that it is about.

    Args:
      maps_HWK: float.
      size: height and width in pixels.
      stride: pixels between the centres of neighbouring cells.
      offset: the pixel at the centre of the first cell. Beyond the outermost centres the edge is
        repeated.
    """
    out = maps_HWK.astype(np.float32)
    for axis, pixels in enumerate(size):
        last = out.shape[axis] - 1
        position = np.clip((np.arange(pixels) - offset) / stride, 0, last)
        low = np.floor(position).astype(int)
        weight = (position - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        high = np.minimum(low + 1, last)
        out = out.take(low, axis) * (1 - weight) + out.take(high, axis) * weight
    return out


def lay_over(
    maps_HWK: np.ndarray, image_size: tuple[int, int], scale: float, stride: int
) -> np.ndarray:
    """Upsamples class maps to an image enlarged `scale` times.

    Behind 3x3/2 poolings without padding the first cell, one of every `stride` pixels, has its
    centre at pixel `stride - 1` of the image.
    """
    size = tuple(max(1, round(side * scale)) for side in image_size)
    return upsample(maps_HWK, size, stride * scale, (stride - 0.5) * scale - 0.5)


def evidence(maps_HWK: np.ndarray, sigma: float = 1.5) -> np.ndarray:
    """What speaks for each class, and at each place, more than for the other classes.

    The maps, blurred by a Gaussian of `sigma` cells (an average over the neighbourhood, as global
    average pooling takes it over the image), less their mean over the classes, which no softmax
    sees; 0 where that is negative. float32 (H, W, K).
    """
    blurred_HWK = ndimage.gaussian_filter(maps_HWK.astype(np.float32), (sigma, sigma, 0))
    return np.maximum(blurred_HWK - blurred_HWK.mean(-1, keepdims=True), 0)


def hottest_box(heat_HW: np.ndarray, fraction: float = 0.5) -> tuple[int, int, int, int] | None:
    """The box (top, left, bottom, right), ends exclusive, around the hottest region.

    That is the connected region around the maximum of all that lies above `fraction` of the way
    from the least to the greatest value. None for a flat map.
    """
    low, high = float(heat_HW.min()), float(heat_HW.max())
    if not high > low:
        return None
    regions_HW, _ = ndimage.label(heat_HW >= low + fraction * (high - low))
    peak = np.unravel_index(np.argmax(heat_HW), heat_HW.shape)
    rows, columns = np.nonzero(regions_HW == regions_HW[peak])
    return int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1


def find_objects(
    evidence_HWK: np.ndarray, fraction: float = 0.35, smallest: float = 1
) -> list[tuple[int, tuple[int, int, int, int]]]:
    """(class, box) of each region where some class's evidence is strong, the strongest first.

    A region is connected and holds the places above `fraction` of the picture's greatest evidence;
    its class is that with the most evidence in it. Boxes are (top, left, bottom, right), ends
    exclusive; those less than `smallest` high or wide are left out.
    """
    strength_HW = evidence_HWK.max(-1)
    if not strength_HW.max() > 0:
        return []
    regions_HW, _ = ndimage.label(strength_HW >= fraction * strength_HW.max())
    found = []
    for region, (rows, columns) in enumerate(ndimage.find_objects(regions_HW), start=1):
        if min(rows.stop - rows.start, columns.stop - columns.start) < smallest:
            continue
        here_HW = regions_HW == region
        box = rows.start, columns.start, rows.stop, columns.stop
        found.append((strength_HW[here_HW].max(), int(evidence_HWK[here_HW].sum(0).argmax()), box))
    return [(k, box) for _, k, box in sorted(found, key=lambda region: -region[0])]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K): images of class `row` that were taken for class `column`."""
    pairs = labels_N * num_classes + predictions_N
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def worst_mistakes(probabilities_NK: np.ndarray, labels_N: np.ndarray, count: int) -> np.ndarray:
    """Indices of the images that were wrong with the highest confidence, worst first."""
    wrong = np.flatnonzero(probabilities_NK.argmax(-1) != labels_N)
    return wrong[np.argsort(-probabilities_NK[wrong].max(-1), kind='stable')][:count]


def first_of_each_class(labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    """Index of the first image of each class that there is one of, by class."""
    classes, first = np.unique(labels_N, return_index=True)
    return first[classes < num_classes]
