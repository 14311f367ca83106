"""The pictures of `experiments.visualize` and `experiments.predict`: scores in, sheets out."""

import dataclasses

import numpy as np
from PIL import Image

from nin_jax.data import images
from nin_jax.data.sources import Arrays
from nin_jax.errors import ConfigError
from nin_jax.pretrained.trained import Trained
from nin_jax.visualize import cam, drawing
from nin_jax.visualize.drawing import GREY, INK, RIGHT, WRONG, Tile

SIDE, DENSE = 96, 320  # longer side of an image in a sheet, and of a larger picture; pixels


@dataclasses.dataclass(frozen=True)
class Scored:
    """A split with what the network makes of it."""

    split: Arrays
    probabilities_NK: np.ndarray
    maps_NHWK: np.ndarray

    @property
    def predictions_N(self) -> np.ndarray:
        return self.probabilities_NK.argmax(-1)


def score(trained: Trained, split: Arrays) -> Scored:
    """Scores a split of images of the network's own size."""
    logits_NK, maps_NHWK = trained.score(split.images)
    return Scored(split, cam.softmax(logits_NK), maps_NHWK)


def figure4(trained: Trained, scored: Scored, fraction: float = 0.1) -> Image.Image:
    """The paper's figure 4: a row for the first test image of each of (the first) ten classes.

    Columns are the class maps, of which the top 10 % of each image's activations are shown. The
    true class's map is framed green, a wrongly predicted class's red.
    """
    split, size, side = scored.split, trained.image_shape[:2], 64
    classes = range(min(10, len(split.class_names)))
    blank = Image.new('RGB', (side, 16), drawing.PAPER)
    tiles = [
        Tile(drawing.label([(text, INK)], (side, 20)) if text else blank)
        for text in ('', 'image', *(split.class_names[k] for k in classes))
    ]
    header = drawing.sheet(tiles, 2 + len(classes))
    tiles = []
    for i in cam.first_of_each_class(split.labels, len(classes)):
        truth, said = split.labels[i], scored.predictions_N[i]
        probability = f'{scored.probabilities_NK[i, said]:.0%}'
        ink = RIGHT if said == truth else WRONG
        words = [(split.class_names[truth], INK), ('taken for', GREY)]
        words += [(split.class_names[said], ink), (probability, GREY)]
        tiles += [
            Tile(drawing.label(words, (side, side))),
            Tile(drawing.enlarge(split.images[i], side)),
        ]
        maps_HWK = cam.lay_over(scored.maps_NHWK[i], size, side / max(size), trained.stride)
        shown_HWK = np.where(cam.top_fraction_mask(maps_HWK, fraction), maps_HWK, 0)
        shown_HWK = shown_HWK / max(shown_HWK.max(), 1e-12)
        for k in classes:
            frame = RIGHT if k == truth else WRONG if k == said else None
            tile = Image.fromarray(drawing.colour(shown_HWK[..., k]))
            tiles.append(Tile(tile, frame=frame))
    body = drawing.sheet(tiles, 2 + len(classes))
    return drawing.stack([header, body])


def heat_tile(
    trained: Trained, image_HWC: np.ndarray, map_HW: np.ndarray, side: int, ink
) -> Image.Image:
    """A class map laid over the square image it was made from, a box round the hottest region."""
    size = trained.image_shape[:2]
    heat_HW = cam.lay_over(map_HW[..., None], size, side / max(size), trained.stride)[..., 0]
    box = cam.hottest_box(heat_HW)
    heat_HW = (heat_HW - heat_HW.min()) / max(np.ptp(heat_HW), 1e-12)
    picture = drawing.overlay(drawing.enlarge(image_HWC, side), heat_HW)
    return drawing.with_box(picture, box, ink)


def heat_maps(trained: Trained, scored: Scored, count: int = 12) -> Image.Image:
    """The first test images, and beside each the map of the class that it was taken for."""
    split, tiles = scored.split, []
    for i in range(min(count, len(split.labels))):
        truth, said = split.labels[i], scored.predictions_N[i]
        ink = RIGHT if said == truth else WRONG
        name = split.class_names[said]
        words = (f'{name} {scored.probabilities_NK[i, said]:.0%}',)
        tiles += [
            Tile(drawing.enlarge(split.images[i], SIDE), (split.class_names[truth],)),
            Tile(
                heat_tile(trained, split.images[i], scored.maps_NHWK[i, ..., said], SIDE, ink),
                words,
            ),
        ]
    return drawing.sheet(tiles, 8)


def mistakes(scored: Scored, count: int = 24) -> Image.Image:
    """The mistakes that were made with the highest confidence."""
    split, p_NK, tiles = scored.split, scored.probabilities_NK, []
    for i in cam.worst_mistakes(p_NK, split.labels, count):
        truth, said = split.labels[i], scored.predictions_N[i]
        words = (
            f'{split.class_names[said]} {p_NK[i, said]:.1%}',
            f'is {split.class_names[truth]} {p_NK[i, truth]:.1%}',
        )
        tiles.append(Tile(drawing.enlarge(split.images[i], SIDE), words))
    if not tiles:
        return drawing.label([('no mistakes', INK)], (200, 40))
    return drawing.sheet(tiles, 8, 'wrong with the highest confidence')


def dense(trained: Trained, picture_HWC: np.ndarray, classes: int = 4) -> Image.Image:
    """A picture of any size, and what the network, sliding over it, sees where.

    First the picture with a box round each region that lights up and the name of its class; then
    the evidence (`cam.evidence`) for any class, and that for each of the strongest classes.
    """
    _, maps_1HWK = trained.score(picture_HWC[None])
    scale = DENSE / max(picture_HWC.shape[:2])
    evidence_HWK = cam.lay_over(
        cam.evidence(maps_1HWK[0]), picture_HWC.shape[:2], scale, trained.stride
    )
    picture = drawing.enlarge(picture_HWC, DENSE)
    boxed = picture
    for k, box in cam.find_objects(evidence_HWK, smallest=2 * trained.stride * scale):
        boxed = drawing.with_box(boxed, box, RIGHT, trained.class_names[k])
    most = max(float(evidence_HWK.max()), 1e-12)
    tiles = [
        Tile(boxed, ('what it sees',)),
        Tile(drawing.overlay(picture, evidence_HWK.max(-1) / most), ('evidence for any class',)),
    ]
    peaks_K = evidence_HWK.max((0, 1))
    for k in np.argsort(-peaks_K)[:classes]:
        heat_HW = evidence_HWK[..., k] / max(float(peaks_K[k]), 1e-12)
        caption = f'{trained.class_names[k]}, up to {peaks_K[k] / most:.0%} of the most'
        tiles.append(Tile(drawing.overlay(picture, heat_HW), (caption,)))
    return drawing.sheet(tiles, 3)


def check_class_maps(trained: Trained) -> None:
    """Raises ConfigError if the network's maps stand for no class: there is nothing to look at."""
    if trained.config.model.head != 'gap':
        raise ConfigError(
            f'model.head={trained.config.model.head!r}: its maps stand for no class, only those of '
            'a network with global average pooling (gap) do'
        )


def filters(trained: Trained) -> Image.Image:
    """The filters of the first convolution."""
    return drawing.kernels(
        np.asarray(trained.params['mlpconvs']['mlpconv1']['layers']['conv']['kernel'])
    )


def confusion(scored: Scored) -> Image.Image:
    """What was taken for what, with each class's error."""
    names = scored.split.class_names
    return drawing.matrix(
        cam.confusion(scored.split.labels, scored.predictions_N, len(names)), names
    )


@dataclasses.dataclass(frozen=True)
class Seen:
    """One picture of the user's, as the network saw it.

    Attributes:
      square_HWC: uint8, the middle of the picture, not yet scaled.
      treatment: what was done to the picture, in words.
      probabilities_K: of each class.
      maps_HWK: the class maps.
    """

    square_HWC: np.ndarray
    treatment: str
    probabilities_K: np.ndarray
    maps_HWK: np.ndarray

    @property
    def ranking(self) -> np.ndarray:
        """Classes, the likeliest first."""
        return np.argsort(-self.probabilities_K, kind='stable')


def look(trained: Trained, picture_HWC: np.ndarray) -> Seen:
    """Scores the middle square of an RGB picture, uint8 of any size."""
    height, width, channels = trained.image_shape
    before = picture_HWC.shape
    image_HWC, done = images.to_channels(picture_HWC, channels)
    square_HWC = images.middle_square(image_HWC)
    side = len(square_HWC)
    words = [f'{before[1]}x{before[0]} pixels']
    if before[0] != before[1]:
        words.append(f'its middle {side}x{side}')
    if done:
        words.append(done)
    if (side, side) != (height, width):
        words.append(f'scaled to {width}x{height}')
    logits_1K, maps_1HWK = trained.score(images.resize(square_HWC, (height, width))[None])
    return Seen(square_HWC, ', '.join(words), cam.softmax(logits_1K)[0], maps_1HWK[0])


def heat_of(trained: Trained, seen: Seen) -> Image.Image:
    """The likeliest class's map laid over the square, the picture beside it."""
    k = seen.ranking[0]
    words = f'{trained.class_names[k]} {seen.probabilities_K[k]:.1%}'
    heat = heat_tile(trained, seen.square_HWC, seen.maps_HWK[..., k], DENSE, RIGHT)
    return drawing.sheet([Tile(drawing.enlarge(seen.square_HWC, DENSE)), Tile(heat, (words,))], 2)
