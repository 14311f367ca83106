"""Data augmentation in training, and the views of test-time augmentation, on the accelerator.

Crops and mirror images are the paper's; the rest are switches of later recipes
(experiments/configs/_fast.py, _modern.py). Each function is a pure one of the key and the whole
batch, however that is spread over devices. Images are preprocessed ones: a zero is the whitened
mean.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Augment:
    """The `augment` part of a config, with what it needs to know of the data.

    Attributes:
      classes: number of classes, for labels that are mixtures.
      examples: number of training images, for the epoch of each image.
      image_side: height of the dataset's images in pixels. Where training images are scaled down,
        crops and cutout shrink with them; 0 for no scaling.
    """

    classes: int = 0
    examples: int = 0
    image_side: int = 0
    crop_pad: int = 0
    flip: bool = False
    alternate_flips: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __call__(
        self,
        run_key: jax.Array,
        step: jax.Array | int,
        x_BHWC: jax.Array,
        labels_B: jax.Array,
        indices_B: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Augments the batch of a step.

        Args:
          run_key: the same in all steps.
          step: of the run.
          x_BHWC, labels_B: the batch.
          indices_B: which training examples they are.

        Returns:
          images_BHWC, and what to predict: labels_B, or targets_BK that sum to 1.
        """
        key, flip = jax.random.fold_in(run_key, step), self.flip
        if flip and self.alternate_flips:
            epoch_B = (step * len(x_BHWC) + jnp.arange(len(x_BHWC))) // self.examples
            flip = alternating_flips(run_key, indices_B, epoch_B)
        pad, hole = self._scaled(self.crop_pad, x_BHWC), self._scaled(self.cutout, x_BHWC)
        x_BHWC = crop_and_flip(key, x_BHWC, pad, flip)
        if hole:  # crop_and_flip has drawn from the keys 0 and 1
            x_BHWC = cutout(jax.random.fold_in(key, 2), x_BHWC, hole)
        if not (self.label_smoothing or self.mixup or self.cutmix):
            return x_BHWC, labels_B
        targets_BK = optax.smooth_labels(
            jax.nn.one_hot(labels_B, self.classes), self.label_smoothing
        )
        if self.mixup or self.cutmix:
            key = jax.random.fold_in(key, 3)
            x_BHWC, targets_BK = mix(key, x_BHWC, targets_BK, self.mixup, self.cutmix)
        return x_BHWC, targets_BK

    def _scaled(self, pixels: int, x_BHWC: jax.Array) -> int:
        """So many pixels of the dataset's images as pixels of these; at least 1, unless 0."""
        if not pixels or not self.image_side:
            return pixels
        return max(1, round(pixels * x_BHWC.shape[1] / self.image_side))


def crop_and_flip(
    key: jax.Array, x_BHWC: jax.Array, pad: int = 4, flip: bool | jax.Array = True
) -> jax.Array:
    """Moves each image by up to `pad` pixels each way and mirrors it with probability 1/2.

    `flip` may also say of each image whether to mirror it: bool (B,).

    Returns images of the same shape and dtype: zeros by `pad` on every side, one random crop of
    the old size, then the flip. Source: the paper's "translation and horizontal flipping
    augmentation"; cuda-convnet Python/convdata.py, CroppedCIFARDataProvider (authors' commit
    ed58c6c5); 8.81 % error.
    """
    height, width, channels = x_BHWC.shape[1:]
    offset_B2, random_B = _draw(key, len(x_BHWC), pad)

    def crop(image_HWC: jax.Array, offset_2: jax.Array) -> jax.Array:
        start = (offset_2[0], offset_2[1], 0)
        return jax.lax.dynamic_slice(image_HWC, start, (height, width, channels))

    if pad:
        padded = jnp.pad(x_BHWC, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        x_BHWC = jax.vmap(crop)(padded, offset_B2)
    if flip is not False:
        flip_B = random_B if flip is True else flip
        x_BHWC = jnp.where(flip_B[:, None, None, None], x_BHWC[:, :, ::-1], x_BHWC)
    return x_BHWC


def alternating_flips(run_key: jax.Array, indices_B: jax.Array, epoch_B: jax.Array) -> jax.Array:
    """Which images to mirror, bool (B,): those of a random half, and in odd epochs the others.

    So two epochs show an image both ways, where independent flips repeat every other one
    (Jordan 2024, arXiv 2404.00498).
    """

    def first(index: jax.Array) -> jax.Array:
        # The keys of the steps are folded once.
        return jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(run_key, index), 4))

    return jax.vmap(first)(indices_B) ^ (epoch_B % 2 == 1)


def _draw(key: jax.Array, batch: int, pad: int) -> tuple[jax.Array, jax.Array]:
    """Crop offsets 0..2*pad, (B, 2) as row and column, and flips, (B,) bool."""
    offset_key, flip_key = jax.random.split(key)
    offset_B2 = jax.random.randint(offset_key, (batch, 2), 0, 2 * pad + 1)
    return offset_B2, jax.random.bernoulli(flip_key, 0.5, (batch,))


def cutout(key: jax.Array, x_BHWC: jax.Array, side: int) -> jax.Array:
    """Zeros one square of `side` pixels, wholly inside, in each image (DeVries, Taylor 2017).

    Theirs may overhang the border; as in the speed records (hlb-CIFAR10), ours does not.
    """
    batch, height, width, _ = x_BHWC.shape
    most_2 = jnp.array([height - side, width - side])
    start_B2 = jax.random.randint(key, (batch, 2), 0, most_2 + 1)
    return jnp.where(_box(start_B2, start_B2 + side, height, width), 0, x_BHWC)


def mix(
    key: jax.Array, x_BHWC: jax.Array, targets_BK: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image, and its target by the same share, with the next one of the batch.

    Mixup (Zhang et al. 2017) adds share * own + (1 - share) * other, the share drawn from
    Beta(mixup, mixup); cutmix (Yun et al. 2019) pastes a box of the other, its share of the area
    from Beta(cutmix, cutmix) before it is clipped at the border. With both above 0, a coin chooses
    for each image. Batches being random, the next image is a random one.
    """
    batch, height, width, _ = x_BHWC.shape
    mixup_key, box_key, place_key, coin_key = jax.random.split(key, 4)
    other_BHWC, other_BK = jnp.roll(x_BHWC, -1, axis=0), jnp.roll(targets_BK, -1, axis=0)
    own_B111 = jnp.ones((batch, 1, 1, 1))  # how much of each pixel is the image's own
    if mixup:
        own_B111 = jax.random.beta(mixup_key, mixup, mixup, (batch, 1, 1, 1))
    own_BHW1 = jnp.broadcast_to(own_B111, (batch, height, width, 1))
    if cutmix:
        size_2 = jnp.array([height, width])
        share_B1 = jax.random.beta(box_key, cutmix, cutmix, (batch, 1))
        half_B2 = jnp.sqrt(1 - share_B1) * size_2 / 2
        center_B2 = jax.random.uniform(place_key, (batch, 2)) * size_2
        start_B2, end_B2 = jnp.round(center_B2 - half_B2), jnp.round(center_B2 + half_B2)
        outside_BHW1 = 1.0 - _box(start_B2, end_B2, height, width)
        coin_B111 = jax.random.bernoulli(coin_key, 0.5, (batch, 1, 1, 1))
        own_BHW1 = jnp.where(coin_B111, own_BHW1, outside_BHW1) if mixup else outside_BHW1
    share_B1 = own_BHW1.mean((1, 2))
    mixed_BHWC = own_BHW1 * x_BHWC + (1 - own_BHW1) * other_BHWC
    return mixed_BHWC.astype(x_BHWC.dtype), share_B1 * targets_BK + (1 - share_B1) * other_BK


def _box(start_B2: jax.Array, end_B2: jax.Array, height: int, width: int) -> jax.Array:
    """(B, H, W, 1) bool: the pixels from `start` to before `end`, rows and columns."""
    inside = [
        (jnp.arange(size) >= start_B2[:, axis, None]) & (jnp.arange(size) < end_B2[:, axis, None])
        for axis, size in ((0, height), (1, width))
    ]
    return (inside[0][:, :, None] & inside[1][:, None, :])[..., None]


# (rows down, columns right, mirrored) of the views whose logits an evaluation averages.
VIEWS = {
    'none': ((0, 0, False),),
    'flip': ((0, 0, False), (0, 0, True)),
    'shift': ((0, 0, False), (-1, -1, False), (1, 1, False)),
    'flip_shift': tuple((d, d, m) for d in (0, -1, 1) for m in (False, True)),
}


def views(x_BHWC: jax.Array, tta: str) -> jax.Array:
    """The views_VBHWC of an entry of VIEWS: test-time augmentation; zeros move in at borders."""
    height, width = x_BHWC.shape[1:3]
    padded = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def view(down: int, right: int, mirrored: bool) -> jax.Array:
        moved = padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        return moved[:, :, ::-1] if mirrored else moved

    return jnp.stack([view(*how) for how in VIEWS[tta]])
