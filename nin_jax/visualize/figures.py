"""The figures of `experiments.visualize` and `experiments.predict`."""

import dataclasses

import numpy as np
from PIL import Image
from scipy.special import softmax

from nin_jax.data import images
from nin_jax.data.sources import Arrays
from nin_jax.errors import ConfigError
from nin_jax.pretrained.trained import Trained
from nin_jax.visualize import cam, drawing
from nin_jax.visualize.drawing import GRAY, INK, RIGHT, WRONG, Color, Tile

SIDE, DENSE = 96, 320  # longer side in pixels: of an image on a sheet, of one on its own


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split and the outputs of the network for it.

    Attributes:
      split: N images and labels.
      probabilities_NK: float32.
      maps_NHWK: the class maps, float32.
    """

    split: Arrays
    probabilities_NK: np.ndarray
    maps_NHWK: np.ndarray

    @property
    def predictions_N(self) -> np.ndarray:
        return self.probabilities_NK.argmax(-1)


def score(trained: Trained, split: Arrays) -> Scored:
    """Computes the outputs for a split, with a progress bar on a terminal."""
    logits_NK, maps_NHWK = trained.score(split.images, progress='scoring')
    return Scored(split, softmax(logits_NK, axis=-1), maps_NHWK)


def class_errors(scored: Scored) -> dict[str, float]:
    """Returns {class name: top-1 error, 0..1} for the classes that have images."""
    labels_N, wrong_N = scored.split.labels, scored.predictions_N != scored.split.labels
    return {
        name: float(wrong_N[labels_N == k].mean())
        for k, name in enumerate(scored.split.class_names)
        if (labels_N == k).any()
    }


def figure4(trained: Trained, scored: Scored, fraction: float = 0.1) -> Image.Image:
    """Draws the paper's figure 4: a row for the first test image of each class, up to ten classes.

    Columns are the class maps, with the largest `fraction` of each image's activations. The map of
    the true class has a green frame, and that of a wrong prediction a red one.
    """
    split, side = scored.split, 64
    classes = range(min(10, len(split.class_names)))
    blank = Image.new('RGB', (side, 16), drawing.PAPER)
    tiles = [
        Tile(drawing.label([(text, INK)], (side, 20)) if text else blank)
        for text in ('', 'image', *(split.class_names[k] for k in classes))
    ]
    header = drawing.sheet(tiles, 2 + len(classes))
    tiles = []
    for i in cam.first_of_each_class(split.labels, len(classes)):
        truth, predicted = split.labels[i], scored.predictions_N[i]
        probability = f'{scored.probabilities_NK[i, predicted]:.0%}'
        ink = RIGHT if predicted == truth else WRONG
        words = [(split.class_names[truth], INK), ('predicted', GRAY)]
        words += [(split.class_names[predicted], ink), (probability, GRAY)]
        tiles += [
            Tile(drawing.label(words, (side, side))),
            Tile(drawing.enlarge(split.images[i], side)),
        ]
        maps_HWK = _lay_over(trained, scored.maps_NHWK[i], side)
        shown_HWK = np.where(cam.top_fraction_mask(maps_HWK, fraction), maps_HWK, 0)
        shown_HWK = shown_HWK / max(shown_HWK.max(), 1e-12)
        for k in classes:
            frame = RIGHT if k == truth else WRONG if k == predicted else None
            tile = Image.fromarray(drawing.heat_color(shown_HWK[..., k]))
            tiles.append(Tile(tile, frame=frame))
    body = drawing.sheet(tiles, 2 + len(classes))
    return drawing.stack([header, body])


def _lay_over(trained: Trained, maps_HWK: np.ndarray, side: int) -> np.ndarray:
    """Upsamples class maps to an image of the trained size, enlarged to `side` pixels."""
    height, width, _ = trained.image_shape
    scale = side / max(height, width)
    return cam.lay_over(maps_HWK, (height, width), scale, trained.stride)


def _heat_tile(
    trained: Trained, image_HWC: np.ndarray, map_HW: np.ndarray, side: int, ink: Color
) -> Image.Image:
    """Draws a class map over its square image, with a box around the region of the maximum."""
    heat_HW = _lay_over(trained, map_HW[..., None], side)[..., 0]
    box = cam.hottest_box(heat_HW)
    heat_HW = (heat_HW - heat_HW.min()) / max(np.ptp(heat_HW), 1e-12)
    return drawing.with_box(drawing.overlay(drawing.enlarge(image_HWC, side), heat_HW), box, ink)


def heat_maps(trained: Trained, scored: Scored, count: int = 12) -> Image.Image:
    """Draws the first test images, each beside the map of its predicted class."""
    split, tiles = scored.split, []
    for i in range(min(count, len(split))):
        truth, k = split.labels[i], scored.predictions_N[i]
        ink = RIGHT if k == truth else WRONG
        heat = _heat_tile(trained, split.images[i], scored.maps_NHWK[i, ..., k], SIDE, ink)
        words = f'{split.class_names[k]} {scored.probabilities_NK[i, k]:.0%}'
        image = drawing.enlarge(split.images[i], SIDE)
        tiles += [Tile(image, (split.class_names[truth],)), Tile(heat, (words,))]
    return drawing.sheet(tiles, 8)


def mistakes(scored: Scored, count: int = 24) -> Image.Image:
    """Draws the wrong predictions with the highest probability."""
    split, p_NK, tiles = scored.split, scored.probabilities_NK, []
    for i in cam.worst_mistakes(p_NK, split.labels, count):
        truth, predicted = split.labels[i], scored.predictions_N[i]
        words = (
            f'{split.class_names[predicted]} {p_NK[i, predicted]:.1%}',
            f'is {split.class_names[truth]} {p_NK[i, truth]:.1%}',
        )
        tiles.append(Tile(drawing.enlarge(split.images[i], SIDE), words))
    if not tiles:
        return drawing.label([('no mistakes', INK)], (200, 40))
    return drawing.sheet(tiles, 8, 'mistakes with the highest confidence')


def dense(trained: Trained, image_HWC: np.ndarray, classes: int = 4) -> Image.Image:
    """Shows the positions of the classes in an image of any size.

    Args:
      trained: a network with global average pooling.
      image_HWC: uint8, with the network's number of channels.
      classes: number of classes that have a tile.

    Returns:
      The image with a box and a name for each detected region (`cam.find_objects`), the largest
      evidence of all classes (`cam.evidence`), and that of each of the strongest classes.
    """
    height, width = image_HWC.shape[:2]
    _, maps_1HWK = trained.score(image_HWC[None])
    scale = DENSE / max(height, width)
    evidence_HWK = cam.lay_over(cam.evidence(maps_1HWK[0]), (height, width), scale, trained.stride)
    image = drawing.enlarge(image_HWC, DENSE)
    boxed = image
    for k, box in cam.find_objects(evidence_HWK, smallest=2 * trained.stride * scale):
        boxed = drawing.with_box(boxed, box, RIGHT, trained.class_names[k])
    peaks_K = evidence_HWK.max((0, 1))
    most = max(float(peaks_K.max()), 1e-12)
    tiles = [
        Tile(boxed, ('detected',)),
        Tile(drawing.overlay(image, evidence_HWK.max(-1) / most), ('evidence for any class',)),
    ]
    for k in np.argsort(-peaks_K)[:classes]:
        heat_HW = evidence_HWK[..., k] / max(float(peaks_K[k]), 1e-12)
        caption = f'{trained.class_names[k]}: peak {peaks_K[k] / most:.0%} of max'
        tiles.append(Tile(drawing.overlay(image, heat_HW), (caption,)))
    return drawing.sheet(tiles, 3)


def check_class_maps(trained: Trained) -> None:
    """Raises ConfigError if the network has no class maps, as with a fully connected head."""
    if trained.config.model.head != 'gap':
        raise ConfigError(
            f'model.head={trained.config.model.head!r}: this network has no class maps, only one '
            "with model.head='gap' (global average pooling) does"
        )


def filters(trained: Trained) -> Image.Image:
    """Draws the filters of the first convolution."""
    return drawing.kernels(
        np.asarray(trained.params['mlpconvs']['mlpconv1']['layers']['conv']['kernel'])
    )


def confusion(scored: Scored) -> Image.Image:
    """Draws the confusion matrix, with the error of each class."""
    names = scored.split.class_names
    return drawing.confusion_matrix(
        cam.confusion(scored.split.labels, scored.predictions_N, len(names)), names
    )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The outputs of the network for one picture.

    Attributes:
      square_HWC: the center square of the picture, uint8, in its original resolution.
      treatment: description of the conversion of the picture.
      class_names: names of the K classes.
      probabilities_K: float32.
      maps_HWK: the class maps, float32.
    """

    square_HWC: np.ndarray
    treatment: str
    class_names: tuple[str, ...]
    probabilities_K: np.ndarray
    maps_HWK: np.ndarray

    @property
    def order_K(self) -> np.ndarray:
        """Class indices, highest probability first."""
        return np.argsort(-self.probabilities_K, kind='stable')

    def ranking(self) -> list[tuple[str, float]]:
        """Returns (class, probability) pairs, highest probability first."""
        return [(self.class_names[k], float(self.probabilities_K[k])) for k in self.order_K]


def predict(trained: Trained, picture_HWC: np.ndarray) -> Prediction:
    """Classifies the center square of an RGB picture, uint8 (H, W, 3) of any size."""
    height, width, channels = trained.image_shape
    rows, columns = picture_HWC.shape[:2]
    image_HWC, done = images.to_channels(picture_HWC, channels)
    square_HWC = images.middle_square(image_HWC)
    side = len(square_HWC)
    words = [f'{columns}x{rows} pixels']
    if rows != columns:
        words.append(f'its middle {side}x{side}')
    if done:
        words.append(done)
    if (side, side) != (height, width):
        words.append(f'scaled to {width}x{height}')
    logits_1K, maps_1HWK = trained.score(images.resize(square_HWC, (height, width))[None])
    probabilities_K = softmax(logits_1K[0])
    return Prediction(
        square_HWC, ', '.join(words), trained.class_names, probabilities_K, maps_1HWK[0]
    )


def heat_map(trained: Trained, found: Prediction) -> Image.Image:
    """Draws the square beside the class activation map of the most probable class."""
    (name, probability), k = found.ranking()[0], found.order_K[0]
    height, width, _ = trained.image_shape
    square_HWC = found.square_HWC
    if height != width:  # in the proportions of the training images, as the maps
        scale = len(square_HWC) / max(height, width)
        square_HWC = images.resize(square_HWC, (round(height * scale), round(width * scale)))
    heat = _heat_tile(trained, square_HWC, found.maps_HWK[..., k], DENSE, RIGHT)
    image = Tile(drawing.enlarge(square_HWC, DENSE))
    return drawing.sheet([image, Tile(heat, (f'{name} {probability:.1%}',))], 2)
