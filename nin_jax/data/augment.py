"""Data augmentation in training, and the views of test-time augmentation, on the accelerator.

Random crops and horizontal flips are in the paper. The others belong to later recipes
(experiments/configs/_fast.py, _modern.py). Each function is pure, and its result does not depend on
how the batch is split over devices. Images are already preprocessed, so zero is the whitened mean.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Augment:
    """The `augment` part of a config, and the properties of the data that it depends on.

    Attributes:
      classes: number of classes, for one-hot targets.
      examples: number of training images, for the epoch of each image.
      image_side: height of the dataset's images in pixels. If training images are resized, crops
        and cutout are scaled by the same factor; 0 for no scaling.
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
          run_key: PRNG key, the same in all steps.
          step: number of the step.
          x_BHWC: preprocessed images, float.
          labels_B: their labels, int32.
          indices_B: their indices in the training split, int32.

        Returns:
          The augmented images_BHWC, and the targets: labels_B, or class probabilities targets_BK.
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
        """Scales a length in pixels with the images; at least 1, unless it is 0."""
        if not pixels or not self.image_side:
            return pixels
        return max(1, round(pixels * x_BHWC.shape[1] / self.image_side))


def crop_and_flip(
    key: jax.Array, x_BHWC: jax.Array, pad: int = 4, flip: bool | jax.Array = True
) -> jax.Array:
    """Takes a random crop of each zero-padded image and flips it horizontally.

    Source: the paper's "translation and horizontal flipping augmentation"; cuda-convnet
    Python/convdata.py, CroppedCIFARDataProvider (authors' commit ed58c6c5); 8.81 % error.

    Args:
      key: PRNG key of the step.
      x_BHWC: images, float.
      pad: number of zeros added on each side; the crops have the original size.
      flip: True flips each image with probability 1/2; a bool array flip_B selects the images.

    Returns:
      Images of the same shape and dtype.
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
    """Returns the images to flip, bool (B,): a random half in even epochs, the rest in odd epochs.

    Any two consecutive epochs contain both versions of each image. With independent flips, half of
    the images are the same in both (Jordan 2024, arXiv 2404.00498).
    """

    def first(index: jax.Array) -> jax.Array:
        # Folded twice, because the keys of steps are folded once.
        return jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(run_key, index), 4))

    return jax.vmap(first)(indices_B) ^ (epoch_B % 2 == 1)


def _draw(key: jax.Array, batch: int, pad: int) -> tuple[jax.Array, jax.Array]:
    """Returns crop offsets 0..2*pad, (B, 2) as row and column, and flips, (B,) bool."""
    offset_key, flip_key = jax.random.split(key)
    offset_B2 = jax.random.randint(offset_key, (batch, 2), 0, 2 * pad + 1)
    return offset_B2, jax.random.bernoulli(flip_key, 0.5, (batch,))


def cutout(key: jax.Array, x_BHWC: jax.Array, side: int) -> jax.Array:
    """Sets a random square of `side` x `side` pixels of each image to 0 (DeVries, Taylor 2017).

    The square is inside the image, as in hlb-CIFAR10. In the publication it may cross the border.
    """
    batch, height, width, _ = x_BHWC.shape
    most_2 = jnp.array([height - side, width - side])
    start_B2 = jax.random.randint(key, (batch, 2), 0, most_2 + 1)
    return jnp.where(_box(start_B2, start_B2 + side, height, width), 0, x_BHWC)


def mix(
    key: jax.Array, x_BHWC: jax.Array, targets_BK: jax.Array, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Mixes each image and its target with the next image of the batch.

    Mixup (Zhang et al. 2017) returns share * own + (1 - share) * other, with the share from
    Beta(mixup, mixup). CutMix (Yun et al. 2019) pastes a box of the other image. The image's own
    share of the area is from Beta(cutmix, cutmix), before the box is clipped at the border. With
    both above 0, each image gets one of them with probability 1/2. The order of a batch is random,
    so the next image is a random one.
    """
    batch, height, width, _ = x_BHWC.shape
    mixup_key, box_key, place_key, coin_key = jax.random.split(key, 4)
    other_BHWC, other_BK = jnp.roll(x_BHWC, -1, axis=0), jnp.roll(targets_BK, -1, axis=0)
    own_B111 = jnp.ones((batch, 1, 1, 1))  # the image's own share of each pixel
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
    """Returns a mask (B, H, W, 1), bool, of rows and columns in [start, end)."""
    inside = [
        (jnp.arange(size) >= start_B2[:, axis, None]) & (jnp.arange(size) < end_B2[:, axis, None])
        for axis, size in ((0, height), (1, width))
    ]
    return (inside[0][:, :, None] & inside[1][:, None, :])[..., None]


# The views of test-time augmentation: (shift down, shift right, flipped), in pixels.
VIEWS = {
    'none': ((0, 0, False),),
    'flip': ((0, 0, False), (0, 0, True)),
    'shift': ((0, 0, False), (-1, -1, False), (1, 1, False)),
    'flip_shift': tuple((d, d, m) for d in (0, -1, 1) for m in (False, True)),
}


def views(x_BHWC: jax.Array, tta: str) -> jax.Array:
    """Returns the views_VBHWC of an entry of VIEWS; shifted images are padded with zeros."""
    height, width = x_BHWC.shape[1:3]
    padded = jnp.pad(x_BHWC, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def view(down: int, right: int, mirrored: bool) -> jax.Array:
        moved = padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        return moved[:, :, ::-1] if mirrored else moved

    return jnp.stack([view(*how) for how in VIEWS[tta]])
