"""Explorers for links and spatial maps: sliders over cached arrays.

A move redraws only what changed onto a picture of the rest, which takes some tens of milliseconds. Where nobody
watches (papermill, nbconvert) an explorer shows itself as a still picture; where somebody does, that picture is put out
as well, for GitHub and every other reader without a kernel.
"""

import io
from collections.abc import Callable, Sequence

import ipywidgets
import numpy as np
from IPython.display import HTML, display
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from kdnb.plots.links import Numbers, heatmap
from kdnb.plots.maps import blend, map_bar, seen
from kdnb.plots.style import WIDTH, described, encoded, in_lines, show, size, words
from kdnb.progress import is_interactive

PAGE, DPI = (
    100,
    150,
)  # pixels an inch of the page, and half as many more that are drawn; twice would take too long
# JupyterLab prefers a widget to a picture, also when its kernel is gone and it can only say so: both are put out, one
# after the other, and the page shows the picture if the widget is not there.
ONE_OF_TWO = (
    ".jp-OutputArea-child:has(.kdnb-explorer):has(+ .jp-OutputArea-child + .jp-OutputArea-child .kdnb-still)"
    " + .jp-OutputArea-child {display: none}"
    ".jp-OutputArea-child:not(:has(.kdnb-explorer)):has(+ .jp-OutputArea-child + .jp-OutputArea-child .kdnb-still)"
    " {display: none}"
)


class Explorer(ipywidgets.VBox):
    """Controls over a figure, of which only `moving` artists are drawn anew.

    change: changes those artists, called with the values of the controls by name. extra: further widgets beside them.
    """

    def __init__(
        self,
        figure: Figure,
        moving: Sequence[Artist],
        controls: dict,
        change: Callable[..., None],
        extra=(),
    ):
        self.moving, self.controls, self.change = moving, controls, change
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()  # places everything, the moving artists included
        figure.set_layout_engine("none")
        for artist in moving:
            artist.set_animated(True)  # left out of what is drawn now
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)
        layout = {"width": f"{WIDTH * PAGE}px", "max_width": "100%", "object_fit": "contain"}
        self.image = ipywidgets.Image(format="jpeg", layout=layout)
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")
        super().__init__(
            [
                ipywidgets.HBox([*controls.values(), *extra], layout={"flex_flow": "row wrap"}),
                self.image,
            ]
        )

    def redraw(self, moved=None) -> None:
        self.change(**{name: control.value for name, control in self.controls.items()})
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            self.canvas.figure.draw_artist(artist)
        self.image.value = encoded(
            np.asarray(self.canvas.buffer_rgba()), "jpeg"
        )  # PNG takes eight times as long

    def _ipython_display_(self) -> None:
        """The explorer where somebody watches, and a still picture of it for everybody who comes later."""
        if is_interactive():
            self.add_class("kdnb-explorer")
            display(super()._repr_mimebundle_(), raw=True)
        text = "Still picture of an explorer: " + described(self.canvas.figure)
        show(np.asarray(self.canvas.buffer_rgba()), WIDTH * PAGE, text)
        if is_interactive():
            display(HTML(f'<style>{ONE_OF_TWO}</style><span class="kdnb-still"></span>'))


class Tile(Artist):
    """A square picture (side, side, 3) that fills its axes; matplotlib's own resampling takes several times as long."""

    def __init__(self, ax: Axes):
        super().__init__()
        self.pixels = np.zeros((2, 2, 3), np.uint8)
        ax.set(aspect="equal", xlim=(0, 1), ylim=(0, 1))
        ax.add_artist(self)

    def draw(self, renderer) -> None:
        left, bottom, right, top = (
            self.axes.get_window_extent(renderer).extents.round().astype(int).tolist()
        )
        image = Image.fromarray(self.pixels).resize(
            (right - left, top - bottom), Image.Resampling.BILINEAR
        )
        renderer.draw_image(
            renderer.new_gc(), left, bottom, np.asarray(image.convert("RGBA"))[::-1]
        )


def link_explorer(history: np.ndarray, by_class, teacher_blocks, student_blocks) -> Explorer:
    """Links over the epochs, or of one class's test images, beside what differs from the first epoch or from the mean.

    history: (epochs, T, S), of the training images; by_class: of `analysis.by_class`, of the test images.
    """
    epochs, names = len(history), [words(name) for name in by_class.names]
    reach = max(
        np.abs(history - history[0]).max(), np.abs(by_class.links - by_class.mean).max(), 1e-6
    )
    figure = Figure((WIDTH, 1.5 + 0.2 * max(len(teacher_blocks), 8)), DPI, layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, label, limit in zip(
        axes, ("mean attention", "difference of attention"), (0, reach), strict=True
    ):
        heatmap(
            ax,
            history[-1],
            teacher_blocks,
            student_blocks,
            label,
            limit,
            every=(1, len(student_blocks) // 9),
        )
    images, titles = (
        [ax.images[0] for ax in axes],
        [ax.set_title("one\ntwo", fontsize=9) for ax in axes],
    )
    cells = [Numbers(ax) for ax in axes]

    by_epoch, of_all = -1, -2  # beside the numbers of the classes
    choice = [("training images, by epoch", by_epoch), ("test images, all", of_all)]
    whose = ipywidgets.Dropdown(
        options=[*choice, *((n, c) for c, n in enumerate(names))], description="images"
    )
    slider = ipywidgets.IntSlider(epochs, 1, epochs, description="epoch")
    play = ipywidgets.Play(
        value=epochs, min=1, max=epochs, interval=max(80, 4000 // epochs), show_repeat=False
    )
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def change(whose: int, epoch: int) -> None:
        slider.disabled = play.disabled = (
            whose != by_epoch
        )  # a class's links are the finished network's
        if whose == by_epoch:
            name, now, other, reference = (
                f"epoch {epoch}",
                history[epoch - 1],
                "epoch 1",
                history[0],
            )
        else:
            name = "all test images" if whose == of_all else f"“{names[whose]}”"
            now = by_class.mean if whose == of_all else by_class.links[whose]
            other, reference = "all test images", by_class.mean
        moved = (
            50 * np.abs(now - reference).sum(-1).mean()
        )  # what one link loses another gains: half the sum
        for image, its, values in zip(images, cells, (now, now - reference), strict=True):
            image.set_data(values)
            its.write(image)
        titles[0].set_text(f"mean attention,\n{name}")
        titles[1].set_text(f"minus {other}:\n{moved:.1f} % of attention differs")

    return Explorer(
        figure, [*images, *titles, *cells], {"whose": whose, "epoch": slider}, change, [play]
    )


def map_explorer(gallery, pair: tuple[int, int], look_at: Callable | None = None) -> Explorer:
    """An image of the gallery beside every network's map of any pair of blocks; `pair`, (t, s), to begin with.

    look_at: makes a gallery of one's own photograph, given an open file and its name, or raises a ValueError; then
    photographs can be uploaded, and join the images.
    """
    figure = Figure((WIDTH, 2.9), DPI, layout="constrained")
    axes = figure.subplots(1, 1 + len(gallery.maps))
    panels = [Tile(ax) for ax in axes]
    titles = [ax.set_title("one\ntwo\nthree", fontsize=8) for ax in axes]
    for ax in axes:
        ax.axis("off")
    map_bar(figure, axes, gallery.quantity)

    narrow = {"width": "270px"}  # three in a row
    controls = {
        "image": ipywidgets.IntSlider(1, 1, len(gallery.pixels), description="image", layout=narrow)
    }
    for name, role, blocks, first in zip(
        "ts", ("teacher", "student"), gallery.blocks, pair, strict=True
    ):
        options = [
            (block, i) for i, (block, _) in enumerate(blocks)
        ]  # sizes stand in the picture's titles
        controls[name] = ipywidgets.SelectionSlider(
            options=options, value=first, description=role, layout=narrow
        )

    def change(image: int, t: int, s: int) -> None:
        pixels = gallery.pixels[image - 1]
        panels[0].pixels = pixels
        titles[0].set_text(in_lines(gallery.names[image - 1], 18))
        for panel, title, network in zip(panels[1:], titles[1:], gallery.maps, strict=True):
            (name, shape), maps, distances = seen(gallery, network, (t, s))
            panel.pixels = blend(pixels, maps[image - 1])
            title.set_text(f"{network} {name}\n{size(shape)}\n{distances[image - 1]}".rstrip())

    upload, complaint = (
        ipywidgets.FileUpload(accept="image/*", description="Upload"),
        ipywidgets.Label(),
    )

    def uploaded(_) -> None:
        nonlocal gallery
        for file in upload.value:
            try:
                gallery, complaint.value = (
                    gallery.extended(look_at(io.BytesIO(file["content"]), file["name"])),
                    "",
                )
            except ValueError as error:
                complaint.value = str(error)
            else:
                controls["image"].max = controls["image"].value = len(gallery.pixels)

    upload.observe(uploaded, "value")
    return Explorer(
        figure, [*panels, *titles], controls, change, [upload, complaint] if look_at else []
    )
