"""Images in a notebook, with alternative text; an image that draws fast."""

from base64 import b64encode
from html import escape
from io import BytesIO

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image


def display_image(pixels: np.ndarray, width: int, alt: str) -> None:
    """Display an image in a notebook, as PNG or JPEG, whichever is smaller.

    Args:
        pixels: uint8 (height, width, 3 or 4).
        width: width on the page in pixels.
        alt: alternative text.
    """
    from IPython.display import display

    encodings = {kind: encode_image(pixels, kind) for kind in ("png", "jpeg")}
    kind = min(encodings, key=lambda kind: len(encodings[kind]))
    data = b64encode(encodings[kind]).decode()
    mime_type = f"image/{kind}"
    # nbconvert ignores alternative text in the metadata of an image, so there is HTML as well.
    html = f'<img alt="{escape(alt)}" width="{width}" src="data:{mime_type};base64,{data}">'
    bundle = {"text/html": html, mime_type: data, "text/plain": alt}
    display(bundle, metadata={mime_type: {"alt": alt, "width": width}}, raw=True)


def encode_image(pixels: np.ndarray, kind: str) -> bytes:
    """Encode uint8 (height, width, 3 or 4) as "png" or "jpeg"."""
    buffer = BytesIO()
    options = {"quality": 92, "subsampling": 0} if kind == "jpeg" else {}
    Image.fromarray(pixels).convert("RGB").save(buffer, kind, **options)
    return buffer.getvalue()


def alt_text(fig: Figure, title: str = "") -> str:
    """Alternative text for a figure: its title, and the labels of its panels, axes and lines."""
    labels = [title]
    for ax in fig.axes:
        labels += [ax.get_title(), ax.get_title("left"), ax.get_ylabel(), ax.get_xlabel()]
    for legend in fig.legends:
        labels += [text.get_text() for text in legend.get_texts()]
    labels = [label.replace(r"\$", "$") for label in labels]  # as matplotlib draws it
    return "; ".join(" ".join(label.split()) for label in labels if label)


class ImageArtist(Artist):
    """A square image (side, side, 3) that fills its axes.

    It draws several times as fast as matplotlib's `imshow`, which resamples slowly.
    """

    def __init__(self, ax: Axes):
        super().__init__()
        self.pixels = np.zeros((2, 2, 3), np.uint8)
        ax.set(aspect="equal", xlim=(0, 1), ylim=(0, 1))
        ax.add_artist(self)

    def draw(self, renderer) -> None:
        extents = self.axes.get_window_extent(renderer).extents.round().astype(int)
        left, bottom, right, top = extents.tolist()
        size = (right - left, top - bottom)
        image = Image.fromarray(self.pixels).resize(size, Image.Resampling.BILINEAR)
        rgba = np.asarray(image.convert("RGBA"))[::-1]
        renderer.draw_image(renderer.new_gc(), left, bottom, rgba)
