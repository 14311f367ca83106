"""The paper's preprocessing, which follows Goodfellow et al. (2013): GCN, then ZCA or LCN.

    prep = fit('gcn_zca', train_images_NHWC)     # once, on the training images
    x_BHWC = jax.jit(lambda prep, images: prep(images))(prep, images_BHWC)

Recipes (pylearn2, scripts/papers/maxout and scripts/datasets):

    scale     pixel / 255                                             MNIST
    gcn_zca   global contrast normalization to norm 55, then ZCA      CIFAR-10, CIFAR-100
    gcn_lcn   global, then local contrast normalization               SVHN
    patch_zca GCN to RMS 1, then ZCA of 5x5 patches                   not in the paper: :fast
    mean      minus the training images' mean color                   ImageNet (as in Caffe)
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.config import CHOICES
from nin_jax.errors import CheckpointError, ConfigError, DataError, SaveError

RECIPES = CHOICES['preprocess.recipe']
FITTED = ('gcn_zca', 'patch_zca', 'mean')  # fitted to the training images
PRECOMPUTED = ('gcn_zca', 'patch_zca')  # too expensive for every step: applied to a split once
ARRAYS = ('mean_HWC', 'whiten_DD', 'kernel_HWIO')  # fields of Preprocess
HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would keep 3 digits of a whitened pixel

Images = np.ndarray | jax.Array  # uint8 or float, (B, H, W, C)


def global_contrast_normalize(
    x_BHWC: jax.Array, scale: float = 55.0, min_divisor: float = 1e-8
) -> jax.Array:
    """Subtracts each image's mean over all its values and sets its L2 norm to `scale`.

    Images are float32, of any size. An image whose norm / scale is below `min_divisor` is not
    divided. Source: pylearn2 expr/preprocessing.py, use_std=False, sqrt_bias=0.
    """
    # A flat image must become exactly 0. At some sizes a compiled mean has a rounding error, which
    # the division would scale up to norm `scale`; this first difference is exact.
    x_BHWC = x_BHWC - x_BHWC[:, :1, :1, :1]
    x_BHWC = x_BHWC - x_BHWC.mean((1, 2, 3), keepdims=True)
    divisor_B111 = jnp.sqrt(jnp.sum(x_BHWC**2, (1, 2, 3), keepdims=True)) / scale
    return x_BHWC / jnp.where(divisor_B111 < min_divisor, 1.0, divisor_B111)


def local_contrast_normalize(
    x_BHWC: jax.Array, kernel_size: int = 7, sigma: float = 2.0, threshold: float = 1e-4
) -> jax.Array:
    """Subtracts the Gaussian-weighted mean around each pixel and divides by the RMS around it.

    Images are float32, of any size, with zero padding; each channel is normalized separately. The
    divisor is the largest of the local RMS (before the mean is subtracted), the channel's mean RMS
    and `threshold`. Source: LeCunLCN in pylearn2 datasets/preprocessing.py of December 2013;
    versions from 17 January 2014 on leave the loop early and normalize only the red channel.
    """
    rms_BHWC = jnp.sqrt(_blur(x_BHWC**2, kernel_size, sigma))
    floor_B11C = jnp.maximum(rms_BHWC.mean((1, 2), keepdims=True), threshold)
    centered_BHWC = x_BHWC - _blur(x_BHWC, kernel_size, sigma)
    return centered_BHWC / jnp.maximum(rms_BHWC, floor_B11C)


def _blur(x_BHWC: jax.Array, kernel_size: int, sigma: float) -> jax.Array:
    """Applies a Gaussian filter as sums of shifted images, in full float32 on every device."""
    mid = kernel_size // 2
    taps = np.exp(-((np.arange(kernel_size) - mid) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    for axis in (1, 2):
        size = x_BHWC.shape[axis]
        pad = [(mid, mid) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x_BHWC, pad)
        shifted = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(kernel_size)]
        weighted = [np.float32(tap) * x for tap, x in zip(taps, shifted, strict=True)]
        x_BHWC = jnp.asarray(sum(weighted))
    return x_BHWC


def fit_zca(
    images_NHWC: np.ndarray, scale: float = 55.0, bias: float = 0.1, chunk: int = 5000
) -> tuple[np.ndarray, np.ndarray]:
    """Fits ZCA to uint8 images after global contrast normalization, in float64.

    With D = H*W*C, whitened = (x_D - mean_D) @ whiten_DD. whiten = V diag(e^-1/2) V' over all
    eigenpairs of covariance + bias * I (pylearn2 datasets/preprocessing.py, class ZCA). 50,000
    CIFAR images take about 10 s on two cores, and 0.5 GB.

    Returns:
      mean_HWC and whiten_DD, float32.
    """
    shape_HWC = images_NHWC.shape[1:]
    size = math.prod(shape_HWC)
    total_D, gram_DD = np.zeros(size), np.zeros((size, size))
    for start in range(0, len(images_NHWC), chunk):
        x_ND = images_NHWC[start : start + chunk].reshape(-1, size).astype(np.float64)
        x_ND -= x_ND.mean(1, keepdims=True)
        divisor_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True) / scale
        x_ND /= np.where(divisor_N1 < 1e-8, 1.0, divisor_N1)
        total_D += x_ND.sum(0)
        gram_DD += x_ND.T @ x_ND
    mean_D = total_D / len(images_NHWC)
    covariance_DD = gram_DD / len(images_NHWC) - np.outer(mean_D, mean_D)
    eigenvalues_D, vectors_DD = np.linalg.eigh(covariance_DD + bias * np.eye(size))
    if not eigenvalues_D[0] > 0:
        raise ConfigError(
            f'zca_bias is {bias!r}: too small for these images, whose covariance is singular to '
            "rounding; the paper's is 0.1"
        )
    root_DD = vectors_DD * eigenvalues_D**-0.25  # squared below: symmetric to the last bit
    whiten_DD = root_DD @ root_DD.T
    return mean_D.astype(np.float32).reshape(shape_HWC), whiten_DD.astype(np.float32)


def fit_patch_zca(
    images_NHWC: np.ndarray, bias: float = 0.1, side: int = 5, every: int = 5, chunk: int = 1000
) -> np.ndarray:
    """Fits ZCA to patches of contrast-normalized uint8 images, in float64.

    The statistics of natural images are nearly the same at each position and scale. So the filter
    of a patch's middle pixel is applied to all pixels, of images of any size.

    Args:
      images_NHWC: uint8.
      bias: added to the eigenvalues of the covariance of images with RMS 1.
      side: side of a patch, in pixels.
      every: the fit uses every n-th image.
      chunk: number of images per matrix product.

    Returns:
      kernel_HWIO (side, side, C, C), float32, of a convolution.
    """
    height, width, channels = images_NHWC.shape[1:]
    size, count = side * side * channels, 0
    gram_DD = np.zeros((size, size))
    for start in range(0, len(images_NHWC), every * chunk):
        part = images_NHWC[start : start + every * chunk : every]
        x_NHWC = np.asarray(_unit_rms(jnp.asarray(part, jnp.float32)), np.float64)
        for top in range(0, height - side + 1, 3):
            for left in range(0, width - side + 1, 3):
                patches_ND = x_NHWC[:, top : top + side, left : left + side].reshape(-1, size)
                gram_DD += patches_ND.T @ patches_ND
                count += len(patches_ND)
    eigenvalues_D, vectors_DD = np.linalg.eigh(gram_DD / count + bias * np.eye(size))
    whiten_DD = (vectors_DD * eigenvalues_D**-0.5) @ vectors_DD.T
    shape, middle = (side, side, channels), side // 2
    kernel_HWIO = whiten_DD.reshape(*shape, *shape)[:, :, :, middle, middle]
    return kernel_HWIO.astype(np.float32)


def _unit_rms(x_BHWC: jax.Array) -> jax.Array:
    return global_contrast_normalize(x_BHWC, math.sqrt(math.prod(x_BHWC.shape[1:])))


def patch_whiten(x_BHWC: jax.Array, kernel_HWIO: np.ndarray | jax.Array) -> jax.Array:
    """Normalizes the contrast to RMS 1 and applies the filter; the padding repeats edge pixels."""
    pads = [(0, 0), *((side // 2, side // 2) for side in kernel_HWIO.shape[:2]), (0, 0)]
    return jax.lax.conv_general_dilated(
        jnp.pad(_unit_rms(x_BHWC), pads, mode='edge'),
        jnp.asarray(kernel_HWIO),
        window_strides=(1, 1),
        padding='VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=HIGHEST,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Preprocess:
    """A fitted recipe. It is a pytree: pass it to a jitted function instead of closing over it.

    Attributes:
      recipe: one of RECIPES.
      gcn_scale: L2 norm of an image in 'gcn_zca'.
      mean_HWC: float32, the mean of 'gcn_zca' or the mean color (1, 1, C) of 'mean'; else None.
      whiten_DD: float32, D = H*W*C, the matrix of 'gcn_zca'; else None.
      kernel_HWIO: float32, the filter of 'patch_zca'; else None.
    """

    recipe: str = dataclasses.field(metadata={'static': True})
    gcn_scale: float = dataclasses.field(default=55.0, metadata={'static': True})
    mean_HWC: Any = None
    whiten_DD: Any = None
    kernel_HWIO: Any = None

    def __call__(self, images_BHWC: Images) -> jax.Array:
        """Preprocesses images with values 0..255; returns float32 of the same shape.

        Raises:
          DataError: the images do not have the size that 'gcn_zca' was fitted to. The other recipes
            accept any height and width.
        """
        x_BHWC = _as_float(images_BHWC)
        if self.recipe == 'scale':
            return x_BHWC / 255
        if self.recipe == 'mean':
            return x_BHWC - self.mean_HWC
        if self.recipe == 'patch_zca':
            return patch_whiten(x_BHWC, self.kernel_HWIO)
        if self.recipe == 'gcn_lcn':
            return local_contrast_normalize(global_contrast_normalize(x_BHWC, scale=1.0))
        _check_recipe(self.recipe)
        if x_BHWC.shape[1:] != self.mean_HWC.shape:
            raise DataError(
                f'the ZCA was fitted to {_size(self.mean_HWC.shape)} images but was given '
                f'{_size(x_BHWC.shape[1:])}: fit it to images of that size, or use '
                'whiten_any_size'
            )
        centered_BHWC = global_contrast_normalize(x_BHWC, self.gcn_scale) - self.mean_HWC
        flat_BD = centered_BHWC.reshape(x_BHWC.shape[0], -1)
        return jnp.matmul(flat_BD, self.whiten_DD, precision=HIGHEST).reshape(x_BHWC.shape)

    @property
    def arrays(self) -> dict[str, Any]:
        """The fitted arrays by field name; None for arrays that the recipe does not use."""
        return {name: getattr(self, name) for name in ARRAYS}

    def any_size(self, images_BHWC: Images) -> jax.Array:
        """Preprocesses images of any size, with `whiten_any_size` if 'gcn_zca' does not fit."""
        if self.recipe == 'gcn_zca' and images_BHWC.shape[1:] != self.mean_HWC.shape:
            return whiten_any_size(self, images_BHWC)
        return self(images_BHWC)


def fit(
    recipe: str, images_NHWC: np.ndarray, *, zca_bias: float = 0.1, gcn_scale: float = 55.0
) -> Preprocess:
    """Fits a recipe to uint8 training images (N, H, W, C).

    Args:
      recipe: one of RECIPES.
      images_NHWC: not used by recipes that are not in FITTED.
      zca_bias: added to the eigenvalues of the covariance, by 'gcn_zca' and 'patch_zca'.
      gcn_scale: L2 norm of an image in 'gcn_zca'.

    Raises:
      ConfigError: the recipe is unknown, or an option is not above 0.
      DataError: the images are not uint8 (N, H, W, C), or there are none.
    """
    _check_recipe(recipe)
    for name, value in (('zca_bias', zca_bias), ('gcn_scale', gcn_scale)):
        if not 0 < value < math.inf:
            raise ConfigError(f'{name} is {value!r}: it must be a finite number above 0')
    if images_NHWC.ndim != 4 or images_NHWC.dtype != np.uint8 or not images_NHWC.size:
        raise DataError(
            f'images are {images_NHWC.dtype} of shape {images_NHWC.shape}: preprocessing is '
            'fitted to uint8 images of shape (N, H, W, C)'
        )
    if recipe == 'mean':
        return mean_color(images_NHWC.mean((0, 1, 2)))
    if recipe == 'patch_zca':
        return Preprocess(recipe, kernel_HWIO=fit_patch_zca(images_NHWC, zca_bias))
    if recipe != 'gcn_zca':
        return Preprocess(recipe)
    return Preprocess(recipe, float(gcn_scale), *fit_zca(images_NHWC, gcn_scale, zca_bias))


def mean_color(mean_C: np.ndarray) -> Preprocess:
    """Returns the recipe 'mean' for a known mean color, 0..255."""
    return Preprocess('mean', mean_HWC=np.asarray(mean_C, np.float32)[None, None])


def whiten_any_size(preprocess: Preprocess, images_BHWC: Images) -> jax.Array:
    """Approximates 'gcn_zca' on images of any size with values 0..255; returns float32.

    ZCA has a filter for each pixel, and the filters are nearly shifted copies of each other. This
    applies the filter of the middle pixel as a convolution; the padding repeats edge pixels. It is
    exact at the middle pixel of an image of the fitted size. On CIFAR-10 test images, the RMS error
    is 10 % around the middle and 28 % over the whole image. The contrast of larger images is
    normalized over the whole image, to the RMS of the fitted images.

    Raises:
      ConfigError: the recipe is not 'gcn_zca'.
      DataError: the number of channels differs from that of the fitted images.
    """
    x_BHWC = _as_float(images_BHWC)
    if preprocess.recipe != 'gcn_zca':
        raise ConfigError(
            f'recipe {preprocess.recipe!r} has no ZCA filter: whiten_any_size needs gcn_zca'
        )
    height, width, channels = preprocess.mean_HWC.shape
    if x_BHWC.shape[-1] != channels:
        raise DataError(
            f'the ZCA was fitted to {channels}-channel images but was given {x_BHWC.shape[-1]}'
        )
    y, x = height // 2, width // 2
    kernel_HWIO = preprocess.whiten_DD.reshape(2 * (height, width, channels))[:, :, :, y, x]
    # The mean of a fitted image is 0. That of a window is not, and ZCA would amplify it by
    # bias**-0.5: subtract it, as GCN of the window would.
    kernel_HWIO = kernel_HWIO - kernel_HWIO.mean((0, 1, 2))
    mean_O = jnp.einsum('hwi,hwio->o', preprocess.mean_HWC, kernel_HWIO, precision=HIGHEST)
    same_rms = math.sqrt(math.prod(x_BHWC.shape[1:]) / preprocess.mean_HWC.size)
    x_BHWC = global_contrast_normalize(x_BHWC, preprocess.gcn_scale * same_rms)
    pad = ((0, 0), (y, height - 1 - y), (x, width - 1 - x), (0, 0))
    out_BHWC = jax.lax.conv_general_dilated(
        jnp.pad(x_BHWC, pad, mode='edge'),
        kernel_HWIO,
        window_strides=(1, 1),
        padding='VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision=HIGHEST,
    )
    return out_BHWC - mean_O


def digest(preprocess: Preprocess) -> str:
    """Returns the SHA-256, in hex, of the recipe and its arrays.

    A fit of ZCA on another machine can differ in the last bits, and so in the digest. Keep the fit
    with the weights that were trained on it.
    """
    sha = hashlib.sha256(f'{preprocess.recipe} {float(preprocess.gcn_scale)!r}'.encode())
    for array in preprocess.arrays.values():
        if array is not None:
            sha.update(f' {array.shape} '.encode())
            sha.update(np.ascontiguousarray(array, '<f4').data)
    return sha.hexdigest()


def save(path: str | os.PathLike, preprocess: Preprocess) -> None:
    """Writes the recipe, its arrays and its digest to an .npz file, atomically.

    Raises:
      SaveError: the file cannot be written.
    """
    path = Path(path)
    arrays = {'recipe': preprocess.recipe, 'gcn_scale': np.float64(preprocess.gcn_scale)}
    arrays['digest'] = digest(preprocess)
    arrays |= {name: array for name, array in preprocess.arrays.items() if array is not None}
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, 'wb') as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise SaveError(f'cannot write {path}: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):  # it is only there after a failure
            temporary.unlink()


def load(path: str | os.PathLike) -> Preprocess:
    """Reads a file written by `save`.

    Raises:
      CheckpointError: the file is missing, damaged, or not a saved preprocessing.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        recipe, scale = str(arrays['recipe']), float(arrays['gcn_scale'])
        preprocess = Preprocess(recipe, scale, **{name: arrays.get(name) for name in ARRAYS})
        sound = digest(preprocess) == str(arrays['digest'])
    except FileNotFoundError as error:
        raise CheckpointError(f"'{path}' is missing: is this the --workdir of a run?") from error
    except _DAMAGE as error:
        reason = ' '.join(str(error).split())
        raise CheckpointError(f'{path} is not a saved preprocessing: {reason}') from error
    if not sound or not _fits_together(preprocess):
        raise CheckpointError(
            f'{path} is damaged (its arrays are not those it was saved with): fit and save it again'
        )
    return preprocess


# What zipfile and numpy raise for a damaged .npz.
_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error),
)


def _fits_together(preprocess: Preprocess) -> bool:
    """Returns whether the arrays are those of the recipe, which the digest does not check."""
    mean, whiten, kernel = preprocess.arrays.values()
    if preprocess.recipe == 'patch_zca':
        return kernel is not None and kernel.ndim == 4 and kernel.dtype == np.float32
    if preprocess.recipe == 'mean':
        return mean is not None and mean.shape[:-1] == (1, 1) and whiten is None
    if preprocess.recipe != 'gcn_zca':
        return preprocess.recipe in RECIPES and mean is None and whiten is None
    return (
        mean is not None
        and whiten is not None
        and mean.dtype == whiten.dtype == np.float32
        and mean.ndim == 3
        and whiten.shape == (mean.size, mean.size)
    )


def _as_float(images_BHWC: Images) -> jax.Array:
    if images_BHWC.ndim != 4:
        raise DataError(f'images have shape {images_BHWC.shape}: expected (B, H, W, C)')
    return jnp.asarray(images_BHWC, jnp.float32)


def _check_recipe(recipe: str) -> None:
    if recipe not in RECIPES:
        raise ConfigError(f'unknown preprocessing {recipe!r}: choose {", ".join(RECIPES)}')


def _size(shape_HWC: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape_HWC))
