"""Pictures from the user's disk, decoded with care, made into what a network was trained on."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from nin_jax.errors import DataError

FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM')
MAX_PIXELS = 64_000_000  # a few hundred MB once decoded; phones stay below


def read_photo(path: str | os.PathLike) -> np.ndarray:
    """Decodes a picture file to uint8 (H, W, 3), RGB.

    Turned upright as its EXIF data says; of an animation, the first frame; what is transparent
    becomes white; 16-bit values are scaled to 8.

    Raises:
      DataError: the file is missing, damaged, no picture, or too large to be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # our limit is lower
        warnings.simplefilter('ignore', UserWarning)  # Pillow's, over damaged metadata
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.mode == 'F':
                    raise DataError(f"'{path}' has floating-point pixels: save it as 8 or 16 bit")
                return np.asarray(_as_rgb(ImageOps.exif_transpose(image)))
        except DataError:
            raise
        except Image.DecompressionBombError:
            raise DataError(
                f"'{path}' has more than {MAX_PIXELS:,} pixels: scale it down first"
            ) from None
        except Image.UnidentifiedImageError:
            raise DataError(
                f"'{path}' is not a picture this can read: choose from {', '.join(FORMATS)}"
            ) from None
        except OSError as e:
            what = e.strerror or f'it is damaged ({e})'
            raise DataError(f"cannot read '{path}': {what}") from None
        except Exception as e:  # decoders raise nearly anything on a damaged file
            raise DataError(f"cannot read '{path}': it is damaged ({e!r})") from None


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith('I'):  # grey of 16 bits
        grey_HW = np.clip(np.rint(np.asarray(image) / 257), 0, 255)
        return Image.fromarray(grey_HW.astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image).convert('RGB')
    return image.convert('RGB')


def to_channels(image_HWC: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """RGB uint8 (H, W, 3) -> (H, W, channels), and what was done to it in words, if anything.

    For one channel, the picture turns grey and, if the middle one of its border pixels is light,
    negative: MNIST's digits are light on black.
    """
    if channels == 3:
        return image_HWC, ''
    grey_HW = np.asarray(Image.fromarray(image_HWC).convert('L'))
    border = [grey_HW[0], grey_HW[-1], grey_HW[:, 0], grey_HW[:, -1]]
    if np.median(np.concatenate(border)) < 128:
        return grey_HW[..., None], 'turned grey'
    return 255 - grey_HW[..., None], 'turned grey and negative, as its border is light'


def middle_square(image_HWC: np.ndarray) -> np.ndarray:
    """The largest square in the middle."""
    height, width = image_HWC.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image_HWC[top : top + side, left : left + side]


def resize(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 of (height, width), smoothed first where it shrinks (Lanczos)."""
    if image_HWC.shape[:2] == size:
        return image_HWC
    planes = [
        Image.fromarray(np.ascontiguousarray(image_HWC[..., c])).resize(
            size[::-1], Image.Resampling.LANCZOS
        )
        for c in range(image_HWC.shape[-1])
    ]
    return np.stack([np.asarray(p) for p in planes], -1)


def shrink(image_HWC: np.ndarray, longest: int) -> np.ndarray:
    """Scales a picture down so that its longer side is `longest` pixels at most."""
    height, width = image_HWC.shape[:2]
    factor = min(1.0, longest / max(height, width))
    return resize(image_HWC, (max(1, round(height * factor)), max(1, round(width * factor))))
