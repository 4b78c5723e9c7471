"""Explorers for links and spatial maps: sliders over cached arrays.

A move redraws only what changed onto a picture of the rest, which takes some tens of milliseconds. Where nobody
watches (papermill, nbconvert) an explorer shows itself as a still picture; where somebody does, that picture is put out
as well, for GitHub and every other reader without a kernel.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import ipywidgets
import numpy as np
from IPython.display import HTML, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kdnb import attention
from kdnb.attention import Gallery
from kdnb.pictures import blend, map_bar
from kdnb.plots import DIVERGING, WIDTH, heatmap, in_lines, short
from kdnb.progress import watched

# JupyterLab prefers a widget to a picture, also when its kernel is gone and it can only say so: both are put out, one
# after the other, and the page shows the picture if the widget is not there.
ONE_OF_TWO = (
    ".jp-OutputArea-child:has(.kdnb-explorer):has(+ .jp-OutputArea-child + .jp-OutputArea-child .kdnb-still)"
    " + .jp-OutputArea-child {display: none}"
    ".jp-OutputArea-child:not(:has(.kdnb-explorer)):has(+ .jp-OutputArea-child + .jp-OutputArea-child .kdnb-still)"
    " {display: none}"
)

__all__ = ["Explorer", "link_explorer", "map_explorer"]


NARROW = {"width": "270px"}  # three in a row


class Picture:
    """A figure as PNG, of which only `moving` artists are drawn anew."""

    def __init__(self, figure: Figure, moving: Sequence[Artist]):
        self.figure, self.moving = figure, moving
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()  # places everything, the moving artists included
        figure.set_layout_engine("none")
        for artist in moving:
            artist.set_animated(True)  # left out of what is drawn now
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)

    def png(self) -> bytes:
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        data = io.BytesIO()
        Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3]).save(data, "png", compress_level=1)
        return data.getvalue()


class Explorer(ipywidgets.VBox):
    """Controls over a picture. `show(**values of the controls)` changes the picture's artists."""

    def __init__(self, picture: Picture, controls: dict[str, ipywidgets.Widget], show: Callable[..., None], extra=()):
        self.picture, self.controls, self.show = picture, controls, show
        self.image = ipywidgets.Image(format="png", layout={"max_width": "100%", "object_fit": "contain"})
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")
        super().__init__([ipywidgets.HBox([*controls.values(), *extra], layout={"flex_flow": "row wrap"}), self.image])

    def redraw(self, change=None) -> None:
        self.show(**{name: control.value for name, control in self.controls.items()})
        self.image.value = self.picture.png()

    def _ipython_display_(self) -> None:
        """The explorer where somebody watches, and a still picture of it for everybody who comes later."""
        if watched():
            self.add_class("kdnb-explorer")
            display(super()._repr_mimebundle_(), raw=True)
        still = base64.b64encode(self.image.value).decode()
        display({"image/png": still, "text/plain": "a still picture of an explorer"}, raw=True)
        if watched():
            display(HTML(f'<style>{ONE_OF_TWO}</style><span class="kdnb-still"></span>'))


def link_explorer(
    history: np.ndarray,
    links: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    teacher_blocks: Sequence[str],
    student_blocks: Sequence[str],
) -> Explorer:
    """Links over the epochs, or of one class's test images, beside what differs from the first epoch or from the mean.

    history: (epochs, T, S), of the training images; links: (n, T, S) and labels (n,), of the test images.
    """
    mean, by_class = links.mean(0), attention.class_links(links, labels, len(classes))
    there = [c for c in range(len(classes)) if np.isfinite(by_class[c]).all()]
    names = [name.replace("_", " ") for name in classes]
    top = max(history.max(), by_class[there].max())
    reach = max(np.abs(history - history[0]).max(), np.abs(by_class[there] - mean).max(), 1e-6)

    figure = Figure(figsize=(WIDTH, 1.5 + 0.2 * max(len(teacher_blocks), 8)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    students = [short(block) for block in student_blocks]  # their sizes would overlap on half a page
    heatmap(axes[0], history[-1], teacher_blocks, students, (0, top))
    heatmap(axes[1], mean * 0, teacher_blocks, students, (-reach, reach), DIVERGING)
    axes[1].set_ylabel("")
    for ax in axes:
        ax.spines[:].set_visible(False)
    titles = [ax.set_title("one\ntwo", fontsize=9) for ax in axes]
    figure.colorbar(axes[0].images[0], ax=axes[0], label="mean attention", pad=0.02)
    figure.colorbar(axes[1].images[0], ax=axes[1], label="difference of attention", pad=0.02)

    epochs = len(history)
    whose = ipywidgets.Dropdown(
        options=[("training images, by epoch", -1), ("test images, all", -2), *((names[c], c) for c in there)],
        description="images",
    )
    epoch = ipywidgets.IntSlider(epochs, 1, epochs, description="epoch")
    play = ipywidgets.Play(value=epochs, min=1, max=epochs, interval=max(80, 4000 // epochs), show_repeat=False)
    ipywidgets.jslink((play, "value"), (epoch, "value"))

    def show(whose: int, epoch: int) -> None:
        now = history[epoch - 1] if whose == -1 else mean if whose == -2 else by_class[whose]
        t, s = np.unravel_index(now.argmax(), now.shape)
        name = f"Epoch {epoch}" if whose == -1 else "All test images" if whose == -2 else f"“{names[whose]}”"
        difference = now - (history[0] if whose == -1 else mean)
        axes[0].images[0].set_data(now)
        axes[1].images[0].set_data(difference)
        link = f"teacher {short(teacher_blocks[t])} teaches student {short(student_blocks[s])}"
        titles[0].set_text(f"{name}, strongest link:\n{link} ({now[t, s]:.2f})")
        reference = "after epoch 1" if whose == -1 else "on all test images"
        moved = 50 * np.abs(difference).sum(-1).mean()  # what one link loses another gains: half the sum
        titles[1].set_text(f"{moved:.1f} % of attention elsewhere\nthan {reference}")

    def able(change) -> None:
        epoch.disabled = play.disabled = change["new"] != -1  # the links of a class are those of the finished network

    whose.observe(able, "value")
    picture = Picture(figure, [ax.images[0] for ax in axes] + titles)
    return Explorer(picture, {"whose": whose, "epoch": epoch}, show, [play])


def map_explorer(gallery: Gallery, pair: tuple[int, int]) -> Explorer:
    """An image of the gallery beside the maps of any pair of blocks, of teacher, plain and distilled student.

    pair: the blocks (t, s) to begin with.
    """
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    axes = figure.subplots(1, 1 + len(gallery.maps))
    names = ["image", *gallery.maps]
    panels = [ax.imshow(np.zeros((2, 2, 3), np.uint8), extent=(0, 1, 1, 0)) for ax in axes]
    titles = [ax.set_title("one\ntwo\nthree", fontsize=8) for ax in axes]
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    map_bar(figure, axes, "energy (1: map's RMS)")

    n = len(gallery.pixels)
    controls = {
        "image": ipywidgets.IntSlider(1, 1, n, description="image", layout=NARROW),
        "t": block_choice("teacher", gallery.teacher_blocks, pair[0]),
        "s": block_choice("student", gallery.student_blocks, pair[1]),
    }

    def show(image: int, t: int, s: int) -> None:
        i = image - 1
        panels[0].set_data(gallery.pixels[i])
        titles[0].set_text(in_lines(gallery.names[i], 18))
        for panel, title, name in zip(panels[1:], titles[1:], names[1:], strict=True):
            block, labels = (t, gallery.teacher_blocks) if name == "teacher" else (s, gallery.student_blocks)
            panel.set_data(blend(gallery.pixels[i], gallery.maps[name][block][i]))
            far = "" if name == "teacher" else f"\ndistance {gallery.distance(name, t, s)[i]:.2f}"
            title.set_text(f"{name} {labels[block]}{far}")

    return Explorer(Picture(figure, [*panels, *titles]), controls, show)


def block_choice(description: str, blocks: Sequence[str], value: int) -> ipywidgets.SelectionSlider:
    options = [(short(block), i) for i, block in enumerate(blocks)]  # sizes stand in the picture's titles
    return ipywidgets.SelectionSlider(options=options, value=value, description=description, layout=NARROW)
