"""Draws what the network sees, with Pillow alone: tiles with captions, laid out in a sheet.

Everything takes arrays and gives a `PIL.Image`; what is drawn is computed in nin_jax/cam.py.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GREY = (32, 33, 36), (255, 255, 255), (128, 132, 138)
RIGHT, WRONG = (0, 158, 96), (214, 56, 44)  # frames and boxes
GAP, LINE = 8, 15  # pixels between tiles; height of a line of text

# Eight points on the way from black over violet and orange to pale yellow.
HEAT = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ]
)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A picture in a sheet: an optional frame round it, lines of text below it."""

    image: Image.Image
    caption: tuple[str, ...] = ()
    frame: tuple[int, int, int] | None = None


def sheet(tiles: Sequence[Tile], columns: int, title: str = '') -> Image.Image:
    """Lays tiles out row by row; columns are as wide, and rows as high, as the largest tile."""
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
                (x, y + tile.image.height + 2 + j * LINE), text, GREY if j else INK, _font(11)
            )
    return page


def stack(pages: Sequence[Image.Image]) -> Image.Image:
    """Pages one below the other."""
    size = (max(p.width for p in pages), sum(p.height for p in pages))
    out, y = Image.new('RGB', size, PAPER), 0
    for page in pages:
        out.paste(page, (0, y))
        y += page.height
    return out


def enlarge(image_HWC: np.ndarray, side: int) -> Image.Image:
    """A uint8 image, (H, W, 1 or 3), its longer side `side` pixels; shown smooth."""
    image = Image.fromarray(image_HWC.squeeze(-1) if image_HWC.shape[-1] == 1 else image_HWC)
    factor = side / max(image.size)
    size = tuple(max(1, round(s * factor)) for s in image.size)
    return image.convert('RGB').resize(size, Image.Resampling.BICUBIC)


def colour(values_HW: np.ndarray) -> np.ndarray:
    """Values 0..1 in the colours of heat: uint8 (H, W, 3)."""
    position = np.clip(values_HW, 0, 1) * (len(HEAT) - 1)
    points = np.arange(len(HEAT))
    return np.stack([np.interp(position, points, HEAT[:, c]) for c in range(3)], -1).astype(
        np.uint8
    )


def overlay(picture: Image.Image, heat_HW: np.ndarray) -> Image.Image:
    """Heat 0..1, of the picture's height and width, laid over the picture turned grey."""
    heat_HW1 = heat_HW[..., None]
    grey_HW1 = np.asarray(picture.convert('L'), np.float32)[..., None]
    alpha = 0.2 + 0.55 * np.clip(heat_HW1, 0, 1)
    mixed_HWC = (1 - alpha) * grey_HW1 + alpha * colour(heat_HW1[..., 0])
    return Image.fromarray(np.clip(mixed_HWC, 0, 255).astype(np.uint8))


def with_box(
    picture: Image.Image, box: tuple[int, int, int, int] | None, ink, name: str = ''
) -> Image.Image:
    """Draws a box (top, left, bottom, right), ends exclusive, and a name in its upper corner."""
    picture = picture.copy()
    if box:
        (top, left, bottom, right), draw = box, ImageDraw.Draw(picture)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=ink, width=2)
        if name:  # above the box where there is room
            length = _font(11).getlength(name)
            left, top = min(left, round(picture.width - length - 6)), max(0, top - LINE)
            draw.rectangle((left, top, left + length + 5, top + LINE), fill=ink)
            draw.text((left + 3, top + 1), name, PAPER, _font(11))
    return picture


def label(text: Sequence[tuple[str, tuple[int, int, int]]], size: tuple[int, int]) -> Image.Image:
    """Lines of text, each in its colour, on paper: a tile that says what a row is."""
    image = Image.new('RGB', size, PAPER)
    draw = ImageDraw.Draw(image)
    for i, (line, ink) in enumerate(text):
        draw.text((0, i * 16), _shorten(line, 12, size[0]), ink, _font(12))
    return image


def matrix(counts_KK: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """A confusion matrix: rows are true classes, columns what they were taken for.

    Cells are shaded by their share of the row; figures are drawn where there is room for them. On
    the right, each class's error.
    """
    n, cell = len(counts_KK), 48 if len(counts_KK) <= 20 else 14
    font = _font(13 if cell > 20 else 10)
    left = round(max(font.getlength(name) for name in class_names)) + 20
    top = left + 24
    page = Image.new('RGB', (left + n * cell + 80, top + n * cell + 12), PAPER)
    draw = ImageDraw.Draw(page)
    share_KK = counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    for row in range(n):
        y = top + row * cell
        draw.text((left - 8, y + cell / 2), class_names[row], INK, font, anchor='rm')
        _upright(page, class_names[row], (left + row * cell, top - 8), cell, font)
        for column in range(n):
            hue = RIGHT if row == column else WRONG
            share = share_KK[row, column] * (1 if row == column else 4)  # mistakes are few
            _cell(draw, (left + column * cell, y), cell, counts_KK[row, column], share, hue, font)
        error = f'{1 - share_KK[row, row]:.1%}'
        draw.text((left + n * cell + 10, y + cell / 2), error, GREY, font, anchor='lm')
    wrong, total = counts_KK.sum() - np.trace(counts_KK), counts_KK.sum()
    title = f'{wrong:,} of {total:,} wrong: {wrong / max(total, 1):.2%}'
    draw.text((8, 8), title, INK, _font(15))
    draw.text((left + n * cell + 10, top - 14), 'error', GREY, font, anchor='lm')
    return page


def _cell(draw, corner: tuple[int, int], side: int, count: int, share: float, hue, font) -> None:
    """A cell of the matrix, the stronger in its hue the greater its share."""
    (x, y), share = corner, min(1.0, share)
    fill = tuple(round(255 + (h - 255) * share) for h in hue)
    draw.rectangle((x, y, x + side - 2, y + side - 2), fill=fill)
    if side > 20 and count:
        ink = PAPER if share > 0.6 else INK
        draw.text((x + side / 2 - 1, y + side / 2 - 1), f'{count:,}', ink, font, anchor='mm')


def _upright(page: Image.Image, text: str, corner: tuple[int, int], width: int, font) -> None:
    """Text read from below, its end at `corner`, over a column `width` pixels wide."""
    length, height = round(font.getlength(text)) + 2, 16
    line = Image.new('RGB', (length, height), PAPER)
    ImageDraw.Draw(line).text((0, height / 2), text, INK, font, anchor='lm')
    page.paste(
        line.rotate(90, expand=True), (corner[0] + (width - height) // 2, corner[1] - length)
    )


def kernels(kernel_HWIO: np.ndarray, columns: int = 16, scale: int = 8) -> Image.Image:
    """First-layer filters, each stretched to the full range of its own values.

    Three input channels are red, green and blue; of any other number, the mean is shown.
    """
    kernel_OHWI = kernel_HWIO.transpose(3, 0, 1, 2).astype(np.float32)
    if kernel_OHWI.shape[-1] != 3:
        kernel_OHWI = kernel_OHWI.mean(-1, keepdims=True).repeat(3, -1)
    # Zero is the same middle grey in all.
    most_O111 = np.abs(kernel_OHWI).max((1, 2, 3), keepdims=True)
    pixels = np.rint(127.5 + 127.5 * kernel_OHWI / np.maximum(most_O111, 1e-12)).astype(np.uint8)
    size = (kernel_HWIO.shape[1] * scale, kernel_HWIO.shape[0] * scale)
    tiles = [Tile(Image.fromarray(p).resize(size, Image.Resampling.NEAREST)) for p in pixels]
    return sheet(
        tiles, columns, f'{len(tiles)} filters of the first convolution, each to its own scale'
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _shorten(text: str, size: int, width: int) -> str:
    """Cuts a line that would run into its neighbour."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'
