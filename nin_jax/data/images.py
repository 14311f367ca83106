"""Reads the user's image files safely, and converts them to the input of a network."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nin_jax.errors import DataError

FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')
MAX_PIXELS = 64_000_000  # a few hundred MB once decoded; phones stay below


def find(paths: Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the files among the paths, and the images in each folder, sorted by name.

    Raises:
      DataError: a folder contains no image.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    found = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
        if not inside:
            raise DataError(f"'{path}' contains no image: choose from {', '.join(FORMATS)}")
        found += inside
    return found


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Decodes an image file to uint8 (H, W, 3), RGB.

    The image is rotated according to its EXIF data. Transparent pixels become white, 16-bit values
    are scaled to 8 bits, and the first frame of an animation is used.

    Raises:
      DataError: the file is missing, damaged, not an image, or too large to decode.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # our limit is lower
        warnings.simplefilter('ignore', UserWarning)  # Pillow's, for damaged metadata
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.mode == 'F':
                    raise DataError(f"'{path}' has floating-point pixels: save it as 8 or 16 bit")
                if (image.mode, image.format) == ('I', 'TIFF'):
                    raise DataError(
                        f"'{path}' has signed or 32-bit pixels: save it as 8 bit or unsigned 16 bit"
                    )
                return np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
        except DataError:
            raise
        except Image.DecompressionBombError:
            raise DataError(
                f"'{path}' has more than {MAX_PIXELS:,} pixels: scale it down first"
            ) from None
        except Image.UnidentifiedImageError:
            raise DataError(
                f"'{path}' is not a supported image: choose from {', '.join(FORMATS)}"
            ) from None
        except OSError as e:
            what = e.strerror or f'it is damaged ({e})'
            raise DataError(f"cannot read '{path}': {what}") from None
        except Exception as e:  # decoders raise nearly anything on a damaged file
            raise DataError(f"cannot read '{path}': it is damaged ({e!r})") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # 16-bit gray
        gray_HW = np.clip(np.rint(np.asarray(image) / 257), 0, 255)
        return Image.fromarray(gray_HW.astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def to_channels(image_HWC: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """Converts RGB uint8 (H, W, 3) to (H, W, channels).

    With one channel, the image becomes gray, and is inverted if the median of its border is light,
    because MNIST's digits are light on black.

    Returns:
      The image, and a description of the conversion; '' if there was none.
    """
    if channels == 3:
        return image_HWC, ''
    gray_HW = np.asarray(Image.fromarray(image_HWC).convert('L'))
    border = [gray_HW[0], gray_HW[-1], gray_HW[:, 0], gray_HW[:, -1]]
    if np.median(np.concatenate(border)) < 128:
        return gray_HW[..., None], 'turned gray'
    return 255 - gray_HW[..., None], 'turned gray and inverted, as its border is light'


def middle_square(image_HWC: np.ndarray) -> np.ndarray:
    """Returns the largest centered square of an image_HWC."""
    height, width = image_HWC.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image_HWC[top : top + side, left : left + side]


def resize(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a uint8 image_HWC to (height, width) with Lanczos resampling and antialiasing."""
    height, width = size
    if image_HWC.shape[:2] == size:
        return image_HWC
    planes = [
        Image.fromarray(np.ascontiguousarray(image_HWC[..., c])).resize(
            (width, height), Image.Resampling.LANCZOS
        )
        for c in range(image_HWC.shape[-1])
    ]
    return np.stack([np.asarray(p) for p in planes], -1)


def shrink(image_HWC: np.ndarray, longest: int) -> np.ndarray:
    """Resizes an image_HWC so that its longer side has at most `longest` pixels."""
    height, width = image_HWC.shape[:2]
    factor = min(1.0, longest / max(height, width))
    return resize(image_HWC, (max(1, round(height * factor)), max(1, round(width * factor))))
