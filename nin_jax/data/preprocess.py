"""The paper's preprocessing, which "follows Goodfellow et al.": GCN, then ZCA or LCN.

    prep = fit('gcn_zca', train_images_NHWC)     # once, on the training images
    x_BHWC = jax.jit(lambda prep, images: prep(images))(prep, images_BHWC)

Recipes (pylearn2, scripts/papers/maxout and scripts/datasets):

    scale     pixel / 255                                             MNIST
    gcn_zca   global contrast normalisation to norm 55, then ZCA      CIFAR-10, CIFAR-100
    gcn_lcn   global, then local contrast normalisation               SVHN
    patch_zca GCN to RMS 1, then ZCA of 5x5 patches                   not in the paper: :fast
    mean      less the training images' mean colour                   ImageNet (Caffe; not fitted)
"""

import contextlib
import dataclasses
import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nin_jax.config import CHOICES
from nin_jax.errors import CheckpointError, ConfigError, DataError, SaveError

RECIPES = CHOICES['preprocess.recipe']
FITTED = ('gcn_zca', 'patch_zca', 'mean')  # these look at the training images
PRECOMPUTED = (
    'gcn_zca',
    'patch_zca',
)  # too expensive for every step: applied once, to the whole split
ARRAYS = ('mean_HWC', 'whiten_DD', 'kernel_HWIO')  # fields of Preprocess
HIGHEST = jax.lax.Precision.HIGHEST  # TF32 would keep 3 digits of a whitened pixel


def global_contrast_normalize(x_BHWC, scale: float = 55.0, min_divisor: float = 1e-8):
    """Takes off each image's mean over all its values and sets its L2 norm to `scale`.

    Float32 of any (B, H, W, C) in and out. An image whose norm / scale is below min_divisor is
    left undivided. Source: pylearn2 expr/preprocessing.py, use_std=False, sqrt_bias=0.
    """
    # A flat image must become exactly 0, but at some sizes a compiled mean is off by a rounding,
    # which the division would blow up to norm `scale`; this first difference is exact.
    x_BHWC = x_BHWC - x_BHWC[:, :1, :1, :1]
    x_BHWC = x_BHWC - x_BHWC.mean((1, 2, 3), keepdims=True)
    divisor_B111 = jnp.sqrt(jnp.sum(x_BHWC**2, (1, 2, 3), keepdims=True)) / scale
    return x_BHWC / jnp.where(divisor_B111 < min_divisor, 1.0, divisor_B111)


def local_contrast_normalize(
    x_BHWC, kernel_size: int = 7, sigma: float = 2.0, threshold: float = 1e-4
):
    """Takes off each pixel's Gaussian-weighted neighbourhood mean and divides by its RMS.

    Float32 of any (B, H, W, C) in and out, each channel alone, zeros around the picture. The
    divisor is the greatest of the RMS there (of x before the mean goes), the channel's mean RMS
    and `threshold`. Source: LeCunLCN in pylearn2 datasets/preprocessing.py of December 2013;
    versions from 17 January 2014 on leave the loop early and normalise red alone.
    """
    rms_BHWC = jnp.sqrt(_blur(x_BHWC**2, kernel_size, sigma))
    floor_B11C = jnp.maximum(rms_BHWC.mean((1, 2), keepdims=True), threshold)
    centred_BHWC = x_BHWC - _blur(x_BHWC, kernel_size, sigma)
    return centred_BHWC / jnp.maximum(rms_BHWC, floor_B11C)


def _blur(x_BHWC, kernel_size, sigma):
    """Gaussian of sum 1: sums of shifted pictures, so no convolution's precision matters."""
    mid = kernel_size // 2
    taps = np.exp(-((np.arange(kernel_size) - mid) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    for axis in (1, 2):
        size = x_BHWC.shape[axis]
        pad = [(mid, mid) if a == axis else (0, 0) for a in range(4)]
        padded = jnp.pad(x_BHWC, pad)
        x_BHWC = sum(
            np.float32(tap) * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i, tap in enumerate(taps)
        )
    return x_BHWC


def fit_zca(images_NHWC, scale: float = 55.0, bias: float = 0.1, chunk: int = 5000):
    """Fits ZCA to globally contrast normalised uint8 images, in float64 throughout.

    Returns (mean_HWC, whiten_DD), float32, D = H*W*C: whitened = (x_D - mean_D) @ whiten_DD.
    whiten = V diag(e^-1/2) V' over the eigenpairs of covariance + bias * I, with no component
    left out (pylearn2 datasets/preprocessing.py, class ZCA). 50,000 CIFAR images take about
    10 s on two cores and 0.5 GB.
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


def fit_patch_zca(images_NHWC, bias: float = 0.1, side: int = 5, every: int = 5, chunk: int = 1000):
    """Fits ZCA to patches of contrast-normalized uint8 images, in float64.

    Natural images look alike at every position and scale, so one filter serves all pixels of images
    of any size: that of the patch's middle pixel.

    Args:
      images_NHWC: uint8; every fifth image is looked at.
      bias: added to the covariance's eigenvalues; the images' values have RMS 1.
      side: of a patch, in pixels.
      every: uses one of so many images.
      chunk: images at a time.

    Returns:
      kernel_HWIO (side, side, C, C), float32, for a convolution.
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


def _unit_rms(x_BHWC):
    return global_contrast_normalize(x_BHWC, math.sqrt(math.prod(x_BHWC.shape[1:])))


def patch_whiten(x_BHWC, kernel_HWIO):
    """Normalizes the contrast to RMS 1 and slides the patch filter; edge pixels are repeated."""
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
    """A fitted recipe: a pytree, so pass it into a jitted function rather than close over it."""

    recipe: str = dataclasses.field(metadata={'static': True})
    gcn_scale: float = dataclasses.field(default=55.0, metadata={'static': True})  # gcn_zca's
    mean_HWC: jax.Array | np.ndarray | None = None  # gcn_zca's and mean's (1, 1, C), float32
    whiten_DD: jax.Array | np.ndarray | None = None  # gcn_zca's, float32, D = H*W*C
    kernel_HWIO: jax.Array | np.ndarray | None = None  # patch_zca's, float32

    def __call__(self, images_BHWC):
        """Images of values 0..255 -> float32 (B, H, W, C).

        `gcn_zca` takes the fitted size (else DataError), the other recipes any H and W.
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
        centred_BHWC = global_contrast_normalize(x_BHWC, self.gcn_scale) - self.mean_HWC
        flat_BD = centred_BHWC.reshape(x_BHWC.shape[0], -1)
        return jnp.matmul(flat_BD, self.whiten_DD, precision=HIGHEST).reshape(x_BHWC.shape)

    @property
    def arrays(self) -> dict[str, jax.Array | np.ndarray | None]:
        """The fitted arrays by field name; None for those that the recipe has not."""
        return {name: getattr(self, name) for name in ARRAYS}

    def any_size(self, images_BHWC):
        """The same for images of any size: where the ZCA does not fit, `whiten_any_size`."""
        if self.recipe == 'gcn_zca' and images_BHWC.shape[1:] != self.mean_HWC.shape:
            return whiten_any_size(self, images_BHWC)
        return self(images_BHWC)


def fit(
    recipe: str, images_NHWC: np.ndarray, *, zca_bias: float = 0.1, gcn_scale: float = 55.0
) -> Preprocess:
    """Fits a recipe to uint8 training images; gcn_zca and mean look at them, the former at options.

    Raises ConfigError for an unknown recipe or an option that is not above 0, DataError for
    images that are not a non-empty uint8 (N, H, W, C).
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


def mean_color(mean_C) -> Preprocess:
    """Recipe 'mean' for a mean colour, in 0..255, that is known already."""
    return Preprocess('mean', mean_HWC=np.asarray(mean_C, np.float32)[None, None])


def whiten_any_size(preprocess: Preprocess, images_BHWC):
    """Approximates gcn_zca on pictures of any size: values 0..255 -> float32 (B, H, W, C).

    ZCA has one filter for each pixel of the fitted size, nearly shifted copies of one another;
    this slides the middle pixel's over the picture, edge pixels repeated beyond the border.
    Exact at the middle of a picture of the fitted size. Elsewhere an approximation: on CIFAR-10
    test images it is off by 10 % (RMS) around the middle and 28 % over the whole image, and on
    larger pictures the contrast is normalised over the whole picture, to the RMS the fitted
    images have, not window by window. Raises ConfigError for another recipe than gcn_zca and
    DataError for another number of channels.
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
    # Fitted images have mean 0, where ZCA's gain is bias**-0.5: without this a shifted window's
    # mean, no longer 0, would swamp the rest. It takes that mean off, as the window's GCN would.
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
    """The sha256, in hex, of the recipe and its arrays.

    A ZCA fitted again to the same images on another machine may differ in its last bits, and so
    in its digest: keep the saved one with the weights trained on it.
    """
    sha = hashlib.sha256(f'{preprocess.recipe} {float(preprocess.gcn_scale)!r}'.encode())
    for array in preprocess.arrays.values():
        if array is not None:
            sha.update(f' {array.shape} '.encode())
            sha.update(np.ascontiguousarray(array, '<f4'))
    return sha.hexdigest()


def save(path: str | os.PathLike, preprocess: Preprocess) -> None:
    """Writes an .npz with its digest inside, whole or not at all; CheckpointError if it cannot."""
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
        with contextlib.suppress(OSError):  # gone already when all went well
            temporary.unlink()


def load(path: str | os.PathLike) -> Preprocess:
    """Reads what save() wrote; CheckpointError if it is missing, damaged or something else."""
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


# Whatever zipfile and numpy raise over a damaged .npz.
_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error),
)


def _fits_together(preprocess):
    """A right digest is not enough: save() signs whatever it is given."""
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


def _as_float(images_BHWC):
    if images_BHWC.ndim != 4:
        raise DataError(f'images have shape {images_BHWC.shape}: expected (B, H, W, C)')
    return jnp.asarray(images_BHWC, jnp.float32)


def _check_recipe(recipe):
    if recipe not in RECIPES:
        raise ConfigError(f'unknown preprocessing {recipe!r}: choose {", ".join(RECIPES)}')


def _size(shape_HWC):
    return 'x'.join(map(str, shape_HWC))
