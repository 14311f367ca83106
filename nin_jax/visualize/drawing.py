"""Draws arrays: sheets of tiles with captions, heat maps, filters and confusion matrices.

Every function returns a `PIL.Image`. The values are computed in cam.py.
"""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

INK, PAPER, GRAY = (32, 33, 36), (255, 255, 255), (128, 132, 138)
RIGHT, WRONG = (0, 158, 96), (214, 56, 44)  # frames and boxes
GAP, LINE = 8, 15  # pixels between tiles; height of a line of text


@dataclasses.dataclass(frozen=True)
class Tile:
    """An image on a sheet, with an optional frame and lines of text below it."""

    image: Image.Image
    caption: tuple[str, ...] = ()
    frame: Color | None = None


def sheet(tiles: Sequence[Tile], columns: int, title: str = '') -> Image.Image:
    """Arranges tiles in rows of cells, each with the width and height of the largest tile."""
    width = max(t.image.width for t in tiles) + GAP
    height = max(t.image.height + LINE * len(t.caption) for t in tiles) + GAP
    top = GAP + (24 if title else 0)
    rows = -(-len(tiles) // columns)
    page = Image.new('RGB', (columns * width + GAP, rows * height + top), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, GAP), title, INK, _font(15))
    for i, tile in enumerate(tiles):
        x, y = GAP + i % columns * width, top + i // columns * height
        page.paste(tile.image, (x, y))
        if tile.frame:
            box = (x - 2, y - 2, x + tile.image.width + 1, y + tile.image.height + 1)
            draw.rectangle(box, outline=tile.frame, width=2)
        for j, line in enumerate(tile.caption):
            text = _shorten(line, 11, width - GAP // 2)
            draw.text(
                (x, y + tile.image.height + 2 + j * LINE), text, GRAY if j else INK, _font(11)
            )
    return page


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Stacks sheets vertically."""
    size = (max(s.width for s in sheets), sum(s.height for s in sheets))
    out, y = Image.new('RGB', size, PAPER), 0
    for image in sheets:
        out.paste(image, (0, y))
        y += image.height
    return out


def enlarge(image_HWC: np.ndarray, side: int) -> Image.Image:
    """Resizes a uint8 image (H, W, 1 or 3) so that its longer side has `side` pixels."""
    image = Image.fromarray(image_HWC.squeeze(-1) if image_HWC.shape[-1] == 1 else image_HWC)
    factor = side / max(image.size)
    width, height = (max(1, round(s * factor)) for s in image.size)
    return image.convert('RGB').resize((width, height), Image.Resampling.BICUBIC)


def heat_color(values_HW: np.ndarray) -> np.ndarray:
    """Maps values 0..1 to matplotlib's inferno colors, uint8 (H, W, 3)."""
    return matplotlib.colormaps['inferno'](np.clip(values_HW, 0, 1), bytes=True)[..., :3]


def overlay(image: Image.Image, heat_HW: np.ndarray) -> Image.Image:
    """Draws heat 0..1 (height, width) over the image in gray."""
    heat_HW1 = heat_HW[..., None]
    gray_HW1 = np.asarray(image.convert('L'), np.float32)[..., None]
    alpha = 0.2 + 0.55 * np.clip(heat_HW1, 0, 1)
    mixed_HWC = (1 - alpha) * gray_HW1 + alpha * heat_color(heat_HW)
    return Image.fromarray(np.clip(mixed_HWC, 0, 255).astype(np.uint8))


def with_box(
    image: Image.Image, box: tuple[int, int, int, int] | None, ink: Color, name: str = ''
) -> Image.Image:
    """Draws a box (top, left, bottom, right), ends exclusive, and a name at its upper corner."""
    image = image.copy()
    if box:
        (top, left, bottom, right), draw = box, ImageDraw.Draw(image)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=ink, width=2)
        if name:  # above the box where there is room
            length = _font(11).getlength(name)
            left, top = min(left, round(image.width - length - 6)), max(0, top - LINE)
            draw.rectangle((left, top, left + length + 5, top + LINE), fill=ink)
            draw.text((left + 3, top + 1), name, PAPER, _font(11))
    return image


def label(text: Sequence[tuple[str, Color]], size: tuple[int, int]) -> Image.Image:
    """Draws lines of text, each in its color, as an image of (width, height)."""
    image = Image.new('RGB', size, PAPER)
    draw = ImageDraw.Draw(image)
    for i, (line, ink) in enumerate(text):
        draw.text((0, i * 16), _shorten(line, 12, size[0]), ink, _font(12))
    return image


def confusion_matrix(counts_KK: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Draws a confusion matrix with a row per true class, and the error of each class.

    The color of a cell shows its share of the row; mistakes are four times as bright. With up to 20
    classes, the cells contain their counts.
    """
    n, total = len(counts_KK), counts_KK.sum()
    share_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    shade_KK = np.where(np.eye(n, dtype=bool), share_KK, -np.minimum(1, 4 * share_KK))
    inch = 0.48 if n <= 20 else min(0.16, 100 / n)  # PIL refuses to read more than 179 megapixels
    figure = Figure(figsize=(n * inch + 2.5, n * inch + 2), dpi=100, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = [np.array(color) / 255 for color in (WRONG, PAPER, RIGHT)]
    map_ = LinearSegmentedColormap.from_list('confusion', colors)
    axes.imshow(shade_KK, map_, vmin=-1, vmax=1)
    size = 9 if n <= 20 else 7
    rows = [f'{name}  {1 - share_KK[k, k]:.1%}' for k, name in enumerate(class_names)]
    axes.set_yticks(range(n), rows, size=size, parse_math=False)
    axes.set_xticks(range(n), list(class_names), size=size, rotation=90, parse_math=False)
    axes.xaxis.tick_top()
    axes.set_xlabel('predicted')
    axes.set_ylabel('true class and its error')
    axes.tick_params(length=0)
    for row, column in np.argwhere(counts_KK) if n <= 20 else ():
        ink = 'white' if abs(shade_KK[row, column]) > 0.6 else 'black'
        count = f'{counts_KK[row, column]:,}'
        axes.text(column, row, count, size=9, color=ink, ha='center', va='center')
    wrong = total - np.trace(counts_KK)
    axes.set_title(f'{wrong:,} of {total:,} wrong: {wrong / max(total, 1):.2%}', loc='left')
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')


def kernels(kernel_HWIO: np.ndarray, columns: int = 16, scale: int = 8) -> Image.Image:
    """Draws the filters of the first layer, each scaled by its largest absolute value.

    Three input channels are red, green and blue. With any other number, the mean is drawn.
    """
    kernel_OHWI = kernel_HWIO.transpose(3, 0, 1, 2).astype(np.float32)
    if kernel_OHWI.shape[-1] != 3:
        kernel_OHWI = kernel_OHWI.mean(-1, keepdims=True).repeat(3, -1)
    # Zero is the same medium gray in all.
    most_O111 = np.abs(kernel_OHWI).max((1, 2, 3), keepdims=True)
    pixels = np.rint(127.5 + 127.5 * kernel_OHWI / np.maximum(most_O111, 1e-12)).astype(np.uint8)
    size = (kernel_HWIO.shape[1] * scale, kernel_HWIO.shape[0] * scale)
    tiles = [Tile(Image.fromarray(p).resize(size, Image.Resampling.NEAREST)) for p in pixels]
    return sheet(
        tiles, columns, f'{len(tiles)} filters of the first convolution, each on its own scale'
    )


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shorten(text: str, size: int, width: int) -> str:
    """Truncates a line that is wider than its cell."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'
