"""Interactive figures of links and spatial maps: controls over arrays in memory.

A change of a control redraws only the animated artists over a saved background, in tens of
milliseconds. An explorer also displays a static image: for papermill and nbconvert, and for
GitHub and other viewers without a kernel.
"""

import io
from collections.abc import Callable, Sequence

import ipywidgets
import numpy as np
from IPython.display import HTML, display
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdnb.plots.display import ImageArtist, alt_text, display_image, encode_image
from kdnb.plots.heatmaps import CellValues, heatmap
from kdnb.plots.link_rows import attention_that_differs
from kdnb.plots.maps import (
    MAX_LIMIT,
    ColourLimits,
    add_colour_bar,
    colour_limits,
    likeliest_classes,
    maps_of_pair,
    overlay,
)
from kdnb.plots.style import WIDTH
from kdnb.plots.text import drawable_text, format_shape, without_formulas, wrap
from kdnb.progress import is_interactive

PAGE_DPI = 100  # pixels per inch on the page
DPI = 150  # pixels per inch that are drawn; twice PAGE_DPI would be too slow
# JupyterLab prefers a widget to an image in one output, even when the kernel of the widget is gone
# and it shows only an error. So widget and image are two outputs. This CSS hides the image if the
# widget is there, and else the output of the missing widget.
SHOW_WIDGET_OR_IMAGE = (
    ".jp-OutputArea-child:has(.kdnb-explorer)"
    ":has(+ .jp-OutputArea-child + .jp-OutputArea-child .kdnb-still)"
    " + .jp-OutputArea-child {display: none}"
    ".jp-OutputArea-child:not(:has(.kdnb-explorer))"
    ":has(+ .jp-OutputArea-child + .jp-OutputArea-child .kdnb-still)"
    " {display: none}"
)
BY_EPOCH = -1  # choices of the link explorer; classes are 0, 1, ...
ALL_TEST = -2


class Explorer(ipywidgets.VBox):
    """Controls above a figure, of which only the animated artists are redrawn.

    Args:
        figure: the figure.
        animated: artists that `update` changes.
        controls: {name: widget with a value}.
        update: changes the artists; called with the value of each control, by name.
        extra: further widgets next to the controls.
        below: further widgets below the figure.
    """

    def __init__(
        self,
        figure: Figure,
        animated: Sequence[Artist],
        controls: dict,
        update: Callable[..., None],
        extra: Sequence[ipywidgets.Widget] = (),
        below: Sequence[ipywidgets.Widget] = (),
    ):
        self.animated = animated
        self.controls = controls
        self.update = update
        self.canvas = FigureCanvasAgg(figure)
        self.canvas.draw()  # the layout takes the animated artists into account
        figure.set_layout_engine("none")
        for artist in animated:
            artist.set_animated(True)  # excludes it from the background
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(figure.bbox)
        layout = {"width": f"{WIDTH * PAGE_DPI}px", "max_width": "100%", "object_fit": "contain"}
        self.image = ipywidgets.Image(format="jpeg", layout=layout)
        self.redraw()
        for control in controls.values():
            control.observe(self.redraw, "value")
        row = ipywidgets.HBox([*controls.values(), *extra], layout={"flex_flow": "row wrap"})
        super().__init__([row, self.image, *below])

    def redraw(self, change=None) -> None:
        """Update the animated artists and the image; `change` is the event of ipywidgets."""
        self.update(**{name: control.value for name, control in self.controls.items()})
        self.canvas.restore_region(self.background)
        for artist in self.animated:
            self.canvas.figure.draw_artist(artist)
        # PNG would take eight times as long.
        self.image.value = encode_image(np.asarray(self.canvas.buffer_rgba()), "jpeg")

    def _ipython_display_(self) -> None:
        """Display the widget in an interactive session, and a static image always."""
        if is_interactive():
            self.add_class("kdnb-explorer")
            display(super()._repr_mimebundle_(), raw=True)
        alt = "Static image of an interactive figure: " + alt_text(self.canvas.figure)
        display_image(np.asarray(self.canvas.buffer_rgba()), WIDTH * PAGE_DPI, alt)
        if is_interactive():
            style = f"<style>{SHOW_WIDGET_OR_IMAGE}</style>"
            display(HTML(f'{style}<span class="kdnb-still"></span>'))


def link_explorer(links_by_epoch: np.ndarray, by_class, teacher_blocks, student_blocks) -> Explorer:
    """Links of an epoch or a class, and their difference from a reference.

    The reference of an epoch is the first epoch, that of a class the mean over all test images.

    Args:
        links_by_epoch: (epochs, T, S), means over the training images.
        by_class: links of the test images, as `analysis.links_by_class` returns them.
    """
    n_epochs = len(links_by_epoch)
    class_names = [drawable_text(name) for name in by_class.names]
    largest_by_epoch = np.abs(links_by_epoch - links_by_epoch[0]).max()
    largest_by_class = np.abs(by_class.links - by_class.mean).max()
    limit = max(largest_by_epoch, largest_by_class, 1e-6)
    height = 1.5 + 0.2 * max(len(teacher_blocks), 8)
    figure = Figure((WIDTH, height), DPI, layout="constrained")
    axes = figure.subplots(1, 2)
    every = (1, len(student_blocks) // 9)
    blocks = (teacher_blocks, student_blocks)
    heatmap(axes[0], links_by_epoch[-1], *blocks, "mean attention", label_every=every)
    heatmap(
        axes[1], links_by_epoch[-1], *blocks, "difference of attention", limit, label_every=every
    )
    images = [ax.images[0] for ax in axes]
    titles = [ax.set_title("one\ntwo", fontsize=9) for ax in axes]  # reserve two lines
    cells = [CellValues(ax) for ax in axes]

    options = [("training images, by epoch", BY_EPOCH), ("test images, all", ALL_TEST)]
    options += [(name, label) for label, name in enumerate(class_names)]
    choice = ipywidgets.Dropdown(options=options, description="images")
    slider = ipywidgets.IntSlider(n_epochs, 1, n_epochs, description="epoch")
    interval = max(80, 4000 // n_epochs)  # milliseconds
    play = ipywidgets.Play(
        value=n_epochs, min=1, max=n_epochs, interval=interval, show_repeat=False
    )
    ipywidgets.jslink((play, "value"), (slider, "value"))

    def update(images_of: int, epoch: int) -> None:
        # The links of the test images are those of the finished network only.
        slider.disabled = images_of != BY_EPOCH
        play.disabled = slider.disabled
        if images_of == BY_EPOCH:
            name, links = f"epoch {epoch}", links_by_epoch[epoch - 1]
            reference_name, reference = "epoch 1", links_by_epoch[0]
        else:
            reference_name, reference = "all test images", by_class.mean
            name, links = reference_name, reference
            if images_of != ALL_TEST:
                name, links = (
                    f"“{without_formulas(class_names[images_of])}”",
                    by_class.links[images_of],
                )
        percent = 100 * attention_that_differs(links, reference)
        for image, values, array in zip(images, cells, (links, links - reference), strict=True):
            image.set_data(array)
            values.update_values(image)
        titles[0].set_text(f"mean attention,\n{name}")
        titles[1].set_text(f"minus {reference_name}:\n{percent:.1f} % of attention differs")

    controls = {"images_of": choice, "epoch": slider}
    return Explorer(figure, [*images, *titles, *cells], controls, update, [play])


def map_explorer(gallery, pair: tuple[int, int], make_gallery: Callable | None = None) -> Explorer:
    """An image of a gallery, and every network's map of a pair of blocks.

    Args:
        gallery: an `analysis.maps.Gallery`; the image's likeliest classes are below the figure.
        pair: indices (t, s) of the first teacher block and student block.
        make_gallery: makes a gallery of an uploaded image, given an open file and its name, or
            raises a ValueError. Without it there is no upload.
    """
    figure = Figure((WIDTH, 2.9), DPI, layout="constrained")
    axes = figure.subplots(1, 1 + len(gallery.maps))
    panels = [ImageArtist(ax) for ax in axes]
    lines = ["one", "two", "three", *colour_limits(gallery, [pair]).label("teacher")]
    titles = [ax.set_title("\n".join(lines), fontsize=8) for ax in axes]  # reserve their space
    for ax in axes:
        ax.axis("off")
    by_network = colour_limits(gallery, [pair]).by_network
    one_scale = ColourLimits(dict.fromkeys(gallery.maps, MAX_LIMIT), by_network)
    add_colour_bar(figure, axes, gallery.quantity, one_scale)
    predictions = ipywidgets.HTML()

    layout = {"width": "270px"}  # three controls fit in a row
    n_images = len(gallery.pixels)
    controls = {
        "image": ipywidgets.IntSlider(1, 1, n_images, description="image", layout=layout),
        "t": block_slider(gallery.blocks[0], pair[0], "teacher", layout),
        "s": block_slider(gallery.blocks[1], pair[1], "student", layout),
    }

    def update(image: int, t: int, s: int) -> None:
        index = image - 1
        pixels = gallery.pixels[index]
        panels[0].pixels = pixels
        titles[0].set_text(wrap(gallery.names[index], 18))
        for panel, title, network in zip(panels[1:], titles[1:], gallery.maps, strict=True):
            (name, shape), maps, distances = maps_of_pair(gallery, network, (t, s))
            limits = colour_limits(gallery, [(t, s)], [index]) if by_network else one_scale
            panel.pixels = overlay(pixels, maps[index], limits.of[network])
            lines = [f"{network} {name}", format_shape(shape), *limits.label(network)]
            title.set_text("\n".join([*lines, distances[index]]).rstrip())
        table = likeliest_classes(gallery, index)
        style = {"index": False, "border": 0, "col_space": "12em", "justify": "left"}
        predictions.value = "" if table is None else table.to_html(**style)

    artists = [*panels, *titles]
    if make_gallery is None:
        return Explorer(figure, artists, controls, update, below=[predictions])

    upload = ipywidgets.FileUpload(accept="image/*", description="Upload")
    message = ipywidgets.Label()

    def add_uploads(_) -> None:
        nonlocal gallery
        for file in upload.value:
            try:
                uploaded = make_gallery(io.BytesIO(file["content"]), file["name"])
                gallery = gallery.extended(uploaded)
            except ValueError as error:
                message.value = str(error)
                continue
            message.value = ""
            controls["image"].max = len(gallery.pixels)
            controls["image"].value = len(gallery.pixels)

    upload.observe(add_uploads, "value")
    return Explorer(figure, artists, controls, update, [upload, message], [predictions])


def block_slider(blocks, index: int, role: str, layout: dict) -> ipywidgets.SelectionSlider:
    """A slider over the names of blocks, whose value is an index."""
    options = [(name, i) for i, (name, _) in enumerate(blocks)]
    return ipywidgets.SelectionSlider(options=options, value=index, description=role, layout=layout)
