"""Figures show the values that they are given, and their labels are readable."""

import warnings
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import image_set, left_in
from drawing import crowded
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from PIL import Image
from toy import CLASSES, blocks, epochs, normalised, random_gallery, random_links, survey_of

from kdnb import plots
from kdnb.analysis import links_by_class
from kdnb.data.loader import Loader
from kdnb.plots import maps, text

LONG_TITLE = "stanford40, resnet18, afd, from resnet18, epochs 30, image_size 64, seed 2"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(labels):
    return [label.get_text() for label in labels]


# Styles, text and files


def test_a_number_has_the_same_style_in_every_figure_and_styles_differ():
    styles = plots.line_styles({"kd": 5, "afd": 2, "alone": 1, "wide": 1, "wider": 1, "crd": 18})
    assert styles["afd"] == plots.ROLES["distilled"]
    assert styles["alone"] == plots.ROLES["baseline"]
    assert plots.line_styles({"crd": 18}) == {"crd": styles["crd"]} == {"crd": plots.STYLES[18]}
    assert len(set(styles.values())) == 6
    assert len({style[:2] for style in plots.STYLES}) == len(plots.STYLES) == 35
    for style, next_style in pairwise(plots.STYLES[:19]):
        assert style.color != next_style.color and style.dashes != next_style.dashes


def test_more_lines_than_styles_use_all_styles():
    lines = {f"pair {i // 18}, method {i % 18}": i % 18 for i in range(234)}
    styles = plots.line_styles(lines)
    assert len(styles) == 234 and set(styles.values()) == {*plots.STYLES}


@pytest.mark.parametrize(
    ("kind", "expected"), [("pdf", b"/MediaBox [ 0 0 244.8 "), ("svg", b' width="244.8pt"')]
)
def test_a_figure_is_saved_for_the_column_of_a_paper(tmp_path, kind, expected):
    fig = plots.learning_curves(epochs("afd", "distilled", "afd0", np.arange(9.0)))
    (path,) = plots.save({"curves": fig}, tmp_path, kind=kind, width=3.4)
    content = path.read_bytes()
    assert path.suffix == f".{kind}"
    assert expected in content and b"/Type3" not in content


def test_file_names_are_short_and_unique():
    title = "digits, epochs 20, batch_size 64, lr 0.01, image_size 8, train_limit -1, data"
    titles = ["digits", f"{title} 0", f"{title} 1"]
    empty = pd.DataFrame(columns=["line"])
    figures = plots.draw_each(plots.accuracy_vs_published, dict.fromkeys(titles, empty))
    assert len(figures) == 3
    assert min(figures, key=len) == "accuracy-vs-published-digits"
    assert max(map(len, figures)) <= len("accuracy-vs-published-") + 48


def test_class_names_in_any_script_are_drawable():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs
        for name in ("Ärger_и_θ", "騎馬_走る", "گربه"):
            fig, ax = plt.subplots()
            ax.set_title(text.wrap(name, 30))
            fig.canvas.draw()
    assert text.drawable_text("Ärger_и_θ") == "Ärger и θ"
    with patch.object(text, "font_with", return_value=""):
        assert text.drawable_text("a_Ä騎") == "a AQi"


# Links


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((3, 6), (3, 2)), ((4, 4), (4, 4)), ((3, 1), (3, 1))],
    ids=["wrn", "many", "few"],
)
def test_labels_do_not_overlap(teacher, student):
    pair = (blocks(*teacher), blocks(*student))
    title = "stanford40, resnet34 → resnet18"
    links = random_links(90, len(pair[0]), len(pair[1]))
    names = [f"looking_through_a_microscope_{i}" for i in range(30)]
    classes = links_by_class(survey_of(links, np.arange(90) % 30, names))
    distances = {"baseline": links + 0.1, "distilled": links}
    figures = [
        plots.link_matrix(links.mean(0), *pair, title),
        plots.link_entropy(links, *pair, title),
        plots.link_history(links, *pair, title),
        plots.links_by_class(classes, *pair, title),
        plots.map_distances(distances, links[..., 0], links, *pair, title),
    ]
    for fig in figures:
        fig.fit(7)  # the width of a page
        assert crowded(fig) == []
        assert fig.get_figwidth() <= 7 and fig.title.endswith(f" – {title}")


def test_run_links_shows_the_last_epoch_with_block_names_and_shapes():
    both = [("1.1", np.array([8, 4, 4])), ("2.1", np.array([8, 2, 2]))]
    means = np.array([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.3, 0.7]]])
    ax = plots.run_links((means, both, both)).axes[0]
    (image,), (values,) = ax.images, ax.collections
    assert image.get_array().tolist() == [[0.9, 0.1], [0.3, 0.7]]
    assert image.get_clim() == (0, 1)
    assert texts(ax.get_yticklabels()) == ["1.1  8×4×4", "2.1  8×2×2"]
    assert texts(ax.get_xticklabels()) == ["1.1\n8×4×4", "2.1\n8×2×2"]
    assert values.texts == ["0.90", "0.10", "0.30", "0.70"]
    assert values.get_facecolor()[:, 0].tolist() == [0, 1, 1, 0]  # black on bright cells
    assert crowded(ax.figure) == []
    assert plots.run_links(None) is None


def test_history_shows_epochs_and_their_differences_from_the_last():
    second_link = np.array([0, 0.5, 0.95, 0.8, 0.92, 1.0])
    history = np.stack([1 - second_link, second_link], 1)[:, None]
    *panels, difference, _ = plots.link_history(history, blocks(1, 1), blocks(1, 2)).axes
    assert [ax.get_title() for ax in panels] == [f"epoch {epoch}" for epoch in (1, 2, 3, 4, 6)]
    assert [ax.images[0].get_clim() for ax in panels] == [(0, 1)] * 5
    (line,) = difference.lines
    assert line.get_ydata() == pytest.approx(100 * (1 - second_link))


def test_the_class_with_the_most_unusual_links_comes_first():
    links = random_links(120, 3, 4)
    labels = np.arange(120) % 4
    links[labels == 2] = [1, 0, 0, 0]
    classes = links_by_class(survey_of(links, labels, ["a_b", "c", "odd_one", "d"]))
    bars, first, *_ = plots.links_by_class(classes, blocks(3, 1), blocks(4, 1)).axes
    assert texts(bars.get_yticklabels())[0] == first.get_title() == "odd one"
    widths = [bar.get_width() for bar in bars.patches]
    assert widths == pytest.approx(sorted(100 * classes.deviation, reverse=True))
    np.testing.assert_allclose(first.images[0].get_array(), classes.links[2] - classes.mean)


def test_links_of_a_single_class_are_drawn():
    links = random_links(120, 3, 4)
    classes = links_by_class(survey_of(links, np.zeros(120, int), ["one"]))
    fig = plots.links_by_class(classes, blocks(3, 1), blocks(4, 1))
    assert len(fig.axes) == 3  # a bar, a difference and its colour bar
    assert crowded(fig) == []


def test_points_are_at_their_values():
    links = np.array([[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], [[0, 1, 0, 0], [0.5, 0.5, 0, 0]]])
    distilled = np.broadcast_to([0.1, 0.3, 9, 9], (2, 2, 4))
    distances = {"baseline": 2 * distilled, "distilled": distilled}
    uniform = np.array([[0.1, 0.2], [0.3, 0.2]])
    fig = plots.map_distances(distances, uniform, links, blocks(2, 1), blocks(4, 1))
    _, *points = fig.axes[0].collections
    heights = [point.get_offsets()[:, 1] for point in points]
    np.testing.assert_allclose(heights, [[0.4, 0.4], [0.2, 0.2], [0.2, 0.2]])
    colours = [tuple(point.get_facecolor()[0]) for point in points[:2]]
    assert colours == [to_rgba(plots.ROLES[role].color) for role in distances]

    ax = plots.link_entropy(links, blocks(2, 1), blocks(4, 1)).axes[0]
    of_mean, of_images = (points.get_offsets()[:, 1].tolist() for points in ax.collections[1:])
    assert of_mean == pytest.approx([1, 1]) and of_images == pytest.approx([0, 1], abs=1e-6)
    assert ax.lines[0].get_ydata() == [2, 2]  # log2(4), of a uniform distribution


@pytest.mark.parametrize(("groups", "per_group"), [(3, 2), (4, 2), (3, 6)])
def test_block_names_fit_beside_five_matrices(groups, per_group):
    names = blocks(groups, per_group)
    matrices = {f"{i}": random_links(len(names), len(names)) for i in range(5)}
    fig = plots.block_matrices(matrices, names, names, "Links")
    fig.fit(9)
    assert crowded(fig) == [] and len(fig.axes) == 6


# Accuracies and times


def test_learning_curves_are_means_in_a_band_and_the_last_third_is_enlarged():
    afd = [epochs("afd", "distilled", f"afd{seed}", np.arange(9.0) + seed) for seed in range(3)]
    none = epochs("none", "baseline", "none0", np.full(9, 5.0))
    fig = plots.learning_curves(pd.concat([*afd, none]), "cifar100")
    whole, late = fig.axes
    lines = {line.get_color(): line.get_ydata() for line in whole.lines if len(line.get_ydata())}
    assert lines.keys() == {plots.ROLES["distilled"].color, plots.ROLES["baseline"].color}
    assert lines[plots.ROLES["distilled"].color].tolist() == list(range(1, 10))
    assert lines[plots.ROLES["baseline"].color].tolist() == [5] * 9
    tops = [path.vertices[:, 1].max() for band in whole.collections for path in band.get_paths()]
    assert tops == pytest.approx([10.0])  # 9 ± 1, of the line with several runs
    assert late.lines[0].get_xdata().tolist() == [7, 8, 9]
    assert texts(fig.legends[0].get_texts()) == ["afd", "none"]
    assert "up to 3 runs – cifar100" in fig.title
    assert crowded(fig) == []


def test_learning_curves_of_few_epochs_have_markers():
    table = epochs("afd", "distilled", "afd0", np.arange(3.0))
    (ax,) = plots.learning_curves(table).axes
    assert ax.lines[0].get_marker() == plots.ROLES["distilled"].marker
    assert plots.learning_curves(table[:0]) is None


def test_a_single_epoch_is_a_point_at_an_integer():
    fig = plots.learning_curves(epochs("afd", "distilled", "afd0", [50.0]))
    assert fig.axes[0].get_xticks().tolist() == [1]
    links = plots.link_history(np.ones((1, 1, 1)), blocks(1, 1), blocks(1, 1))
    assert links.axes[1].get_xticks().tolist() == [1]
    assert any(line.get_marker() == "o" for line in fig.axes[0].lines)


def test_more_than_ten_lines_have_a_panel_each_beside_the_baseline():
    none = epochs("net, labels only", "baseline", "none0", np.full(9, 5.0))
    tables = [none]
    for i in range(12):
        table = epochs(f"net, m{i} from t", "distilled", f"m{i}", np.arange(9.0) + i)
        tables.append(table.assign(order=3 + i))
    fig = plots.learning_curves(pd.concat(tables), "digits")
    assert [ax.get_title() for ax in fig.axes] == [f"net,\nm{i} from t" for i in range(12)]
    assert crowded(fig) == []
    for i, ax in enumerate(fig.axes):
        lines = sorted(line.get_ydata().tolist() for line in ax.lines)
        # The first third of the epochs is left out.
        assert lines == sorted([[5.0] * 6, list(np.arange(3.0, 9) + i)])


def test_learning_curves_mark_drops_of_the_learning_rate_and_chance():
    lr = [0.05, 0.1, 0.1, 0.01, 0.006, 0.003, 0.001, 0.001, 0.001]  # two fall to less than half
    table = epochs("afd", "distilled", "afd0", np.arange(9.0), lr=lr, classes=20)
    fig = plots.learning_curves(table)
    whole, late = fig.axes
    *drops, chance = [line for line in whole.lines if len(line.get_ydata()) == 2]
    assert [line.get_xdata()[0] for line in drops] == [3, 6]  # the epochs before the drops
    assert chance.get_ydata() == [5, 5]  # percent, of 20 classes
    assert not [line for line in late.lines if len(line.get_ydata()) == 2]
    labels = texts(fig.legends[0].get_texts())
    assert labels == ["afd", "learning rate drops", "chance (5 %)"]
    for width in (9, 7):
        fig.fit(width)
        assert crowded(fig) == []


def test_accuracy_over_time_has_a_line_per_run_and_separates_devices():
    tables = [epochs("alone", "baseline", s, [1.0, 2.0], spent=[60 * s, 120 * s]) for s in (1, 2)]
    ax = plots.accuracy_over_time(pd.concat(tables)).axes[0]
    times = [line.get_xdata().tolist() for line in ax.lines if len(line.get_xdata())]
    assert times == [[1, 2], [2, 4]]
    assert ax.get_xlabel().endswith("(minutes)")

    h200, epyc = tables
    fig = plots.accuracy_over_time(
        pd.concat([h200.assign(device="H200"), epyc.assign(device="EPYC")])
    )
    assert texts(fig.legends[0].get_texts()) == ["alone, H200", "alone, EPYC"]


def test_published_numbers_are_points_and_runs_a_mean(tmp_path):
    table = pd.DataFrame({"line": [*["alone"] * 4, "afd"], "top1": [72.0, 74.0, 72.9, 73.3, 75.5]})
    table["study"] = [*["this study"] * 2, *["published"] * 2, "published, best epoch"]
    fig = plots.accuracy_vs_published(table)
    ax = fig.axes[0]
    (mean,) = (line for line in ax.lines if line.get_marker() == "o")
    assert mean.get_xdata() == [73]
    points = {
        collection.get_label(): collection.get_offsets()[:, 0].tolist()
        for collection in ax.collections
        if isinstance(collection, PathCollection)
    }
    assert points == {"published": [72.9, 73.3], "published, best epoch": [75.5]}
    assert {*points} < {*texts(fig.legends[0].get_texts())}
    assert texts(ax.get_yticklabels()) == ["alone", "afd"]
    assert crowded(fig) == []


def test_saved_figures_are_listed_in_the_index(tmp_path):
    table = pd.DataFrame({"line": ["afd"] * 2, "top1": [72.0, 74.0]})
    table["study"] = ["this study", "published"]
    fig = plots.accuracy_vs_published(table)
    none = plots.accuracy_vs_published(table[:0])
    folder = tmp_path / "figures"
    paths = plots.save({"published": fig, "none": none}, folder)
    assert paths == [folder / "published.png"]
    assert Image.open(paths[0]).width == 9 * 150
    plots.write_index(folder)
    page = (folder / "README.md").read_text()
    assert page == "# Figures\n\n![Test accuracy here and as published](published.png)\n"
    assert left_in(folder) == ["README.md", "published.png"]


def test_figures_that_cannot_be_written_end_nothing(tmp_path):
    """The runs may lie in a folder that can only be read."""
    (tmp_path / "figures").write_text("no folder")
    fig = plots.accuracy_vs_published(
        pd.DataFrame({"line": ["a"], "top1": 1.0, "study": "this study"})
    )
    with pytest.warns(UserWarning, match=r"figures/f.png is not written: "):
        assert plots.save({"f": fig}, tmp_path / "figures") == []
    with pytest.warns(UserWarning, match=r"README.md is not written: "):
        plots.write_index(tmp_path / "figures")


def test_step_times_stack_the_parts_and_mark_the_floor():
    parts = pd.DataFrame({"part": ["teacher", "student"], "ms": [4.0, 9.0]})
    floor = pd.DataFrame({"training": ["labels only", "kd"], "ms": [3.0, 5.0]})
    columns = {"training": ["kd", "labels only"], "step": "engine", "ms": [20.0, 8.0]}
    steps = pd.DataFrame({**columns, "images/s": 3200.0})
    ax = plots.step_times(steps, parts, floor).axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 4), (4, 9), (0, 20), (0, 8)]
    segments = [line.tolist() for line in ax.collections[0].get_segments()]
    assert segments == [[[5, 0.6], [5, 1.4]], [[3, 1.6], [3, 2.4]]]
    assert crowded(ax.figure) == []


# Images


class Photographs(list):
    targets = (0, 1)
    classes = ("riding_a_horse", "smoking")


def test_images_have_the_aspect_ratios_of_their_photographs():
    images = image_set(n=6, classes=3, aspect=torch.tensor([2.0, 0.5, 1, 1, 1, 1]))
    fig = plots.image_grid(images, rows=3)
    shapes = [ax.images[0].get_array().shape[:2] for ax in fig.axes[:3]]
    assert shapes == [(8, 16), (16, 8), (8, 8)]
    assert sum(len(ax.images) for ax in fig.axes) == 6  # the third row has no images
    title = plots.image_grid(images, columns=2).title
    assert title == "6 images in 3 classes, 2 of which are shown"


def test_image_sizes_are_those_of_photographs_or_aspect_ratios(tmp_path):
    images = image_set(n=6, classes=3, aspect=torch.tensor([2.0, 0.5, 1, 1, 1, 1]))
    bars = plots.image_sizes(images).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == 6
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (100, 40)).save(tmp_path / "JPEGImages" / "wide.png")
    photographs = Photographs()
    photographs.folder, photographs.names = tmp_path, ["wide.png"]
    points = plots.image_sizes(image_set(n=5), photographs).axes[0].collections[0]
    assert points.get_offsets().tolist() == [[100, 40]]
    assert plots.image_sizes(image_set(n=5)) is None


@pytest.mark.parametrize("classes", [3, 40, 100])
def test_class_balance_is_readable_with_many_classes(classes):
    images = image_set(n=3 * classes, classes=classes)
    test = images.limit(2 * classes)
    fig = plots.class_balance(images, test)
    bars = [bar.get_height() for ax in fig.axes for bar in ax.patches]
    assert bars == ([3] * classes + [2] * classes if classes <= 12 else [])
    sentence = f"train: {3 * classes} images in {classes} classes, 3 in each"
    assert fig.axes[0].get_title("left") == sentence
    assert crowded(fig) == []

    fig = plots.class_balance(images.limit(2 * classes + 1), test)
    assert len(fig.axes[0].patches) == classes and crowded(fig) == []


def test_images_without_a_label_are_counted_and_not_drawn_as_a_class():
    images = image_set(n=12, classes=3)
    images = replace(images, labels=images.labels.clone().index_fill_(0, torch.arange(4), -1))
    fig = plots.class_balance(images, images.labelled())
    assert [bar.get_height() for bar in fig.axes[0].patches] == [2, 3, 3]
    assert fig.axes[0].get_title("left").endswith("2 to 3 in each, and 4 without a label")
    fig = plots.augmentations(Loader(images, 4, 8, train=True), columns=2, rows=3)
    assert [ax.get_ylabel() for ax in fig.axes[::2]] == ["class 0", "class 1", "class 2"]


def test_augmentations_show_the_stored_image_and_its_views():
    images = image_set(n=12)
    loader = Loader(images, 4, 8, train=True, padding=2, flip=True)
    fig = plots.augmentations(loader, columns=4, rows=2)
    augmented = "crops shifted by up to 2 px, flipped with probability ½"
    assert fig.title.endswith(f"8 × 8 pixels: {augmented}")
    stored, *views = (np.asarray(ax.images[0].get_array()) for ax in fig.axes[:4])
    assert (stored == images.images[0].permute(1, 2, 0).numpy()).all()
    assert len({view.tobytes() for view in views}) > 1

    fig = plots.augmentations(Loader(images, 4, 8, train=True), columns=2, rows=1)
    assert (np.asarray(fig.axes[1].images[0].get_array()) == stored).all()


def test_person_boxes_are_drawn_at_their_coordinates():
    box = torch.tensor([10.0, 10, 50, 30])
    photographs = Photographs((Image.new("RGB", (100, 40)), (label, box)) for label in (0, 1))
    fig = plots.person_boxes(photographs, rows=1)
    assert fig.axes[0].patches[0].get_bbox().bounds == (10, 10, 40, 20)
    assert fig.axes[1].get_title() == "smoking\n20% of 100 × 40"
    assert plots.person_boxes(None) is None


# Maps


def test_map_depth_has_a_column_per_pair_and_a_row_per_network():
    gallery = random_gallery()
    pairs = [(0, 0), (3, 1), (4, 2)]
    fig = plots.map_depth(gallery, pairs, image=1)
    assert len([ax for ax in fig.axes if ax.images]) == 9 and crowded(fig) == []
    distances = [ax.get_xlabel() for ax in fig.axes[3:6]]
    assert distances == ["distance 0.00", "distance 0.31", "distance 0.42"]
    assert fig.axes[1].get_title() == "2.2\n128×28×28"
    assert fig.axes[4].get_title() == "2.1\n128×28×28"
    limit = maps.colour_limits(gallery, pairs, [1]).of["teacher"]
    expected = maps.overlay(gallery.pixels[1], gallery.maps["teacher"][3][1], limit)
    assert (fig.axes[1].images[0].get_array() == expected).all()
    assert fig.axes[0].get_ylabel() == f"teacher\nscale 1–{limit:.2f}"


@pytest.mark.parametrize("has_colour", [True, False])
def test_each_network_has_a_scale_over_photographs_and_all_share_one_over_grey_images(has_colour):
    gallery = random_gallery()
    weak = [normalised(5 + array) for array in gallery.maps["distilled"]]
    gallery = gallery._replace(maps=gallery.maps | {"distilled": weak})
    if not has_colour:
        gallery = gallery._replace(pixels=[pixels[..., [0, 0, 0]] for pixels in gallery.pixels])
    limits = maps.colour_limits(gallery, [(0, 0)])
    assert (limits.of["distilled"] < limits.of["baseline"]) == has_colour
    labels = [ax.get_ylabel() for ax in plots.map_grid(gallery, (2, 1)).axes]
    assert any("scale 1–" in label for label in labels) == has_colour


def test_the_colour_limits_are_clipped():
    gallery = random_gallery()
    uniform, corner = {}, {}
    for role, arrays in gallery.maps.items():
        uniform[role] = [np.full(array.shape, array[0].size ** -0.5) for array in arrays]
        corner[role] = [np.zeros(array.shape) for array in arrays]
        for array in corner[role]:
            array[:, 0, 0] = 1
    limits = [maps.colour_limits(gallery._replace(maps=m), [(0, 0)]) for m in (uniform, corner)]
    assert [set(each.of.values()) for each in limits] == [{1.2}, {2.5}]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_map_grid_labels_images_maps_and_predictions(n):
    gallery = random_gallery(n)
    near = plots.map_grid(gallery, (2, 1), "digits")
    predicted = plots.map_grid(gallery, (2, 1), LONG_TITLE, with_predictions=True)
    for fig in (near, predicted):
        assert len([ax for ax in fig.axes if ax.images]) == 4 * n
        for width in (9, 7):
            fig.fit(width)
            assert crowded(fig) == []
    labels = texts(ax.title for ax in near.axes[1:4])
    if n > 2:  # then networks are rows
        labels = [ax.get_ylabel() for ax in near.axes[n : 4 * n : n]]
    assert [label.rsplit("\n", 1)[0] for label in labels] == [
        f"{role}\n2.1" for role in gallery.maps
    ]
    assert {ax.get_xlabel() for ax in near.axes if ax.get_xlabel()} == {"distance 0.21"}
    captions = [ax.get_xlabel() for ax in predicted.axes if ax.get_xlabel()]
    captions = sorted(caption.strip("“”").replace("\n", " ") for caption in captions)
    classes = [name for names in gallery.predicted.values() for name in names]
    assert captions == sorted(name.replace("_", " ") for name in classes)
    assert plots.map_grid(None, (2, 1)) is None


def test_the_likeliest_classes_have_a_column_per_network_and_probabilities():
    table = plots.likeliest_classes(random_gallery(), 1)
    assert list(table) == ["baseline", "distilled"]
    first, second = CLASSES[1], CLASSES[0]
    assert table["distilled"].tolist() == [f"{first} 60.0%", f"{second} 25.0%"]
    assert plots.likeliest_classes(None) is None
    assert plots.likeliest_classes(random_gallery()._replace(likeliest={})) is None


def test_a_map_over_mid_grey_has_the_colours_of_its_colour_bar():
    energies = normalised(np.ones((1, 4, 4)) + np.arange(4))[0]
    fig, ax = plt.subplots()
    maps.add_colour_bar(fig, ax, "energy")
    bar = fig.axes[-1]._colorbar
    expected = bar.cmap(bar.norm(energies * 4))[..., :3]  # in units of the RMS, 1 / 4
    pixels = maps.overlay(np.full((8, 8, 3), 127, np.uint8), energies)
    assert pixels.shape == (256, 256, 3)
    assert np.abs(pixels[32::64, 32::64] / 255 - expected).max() < 0.02
    assert np.abs(np.diff(pixels.astype(int), axis=1)).max() < 8  # smooth between cells


def test_the_image_is_visible_in_grey_below_its_map():
    energies = normalised(np.ones((1, 4, 4)) + np.arange(4))[0]
    # A yellow flower is no energy, and a white shirt stays white.
    yellow, white = (np.full((300, 300, 3), v, np.uint8) for v in ((255, 220, 0), (255, 255, 255)))
    overlaid = maps.overlay(yellow, 0 * energies)
    assert (overlaid == overlaid[0, 0, 0]).all() and 180 < overlaid[0, 0, 0] < 220
    assert (maps.overlay(white, 0 * energies) == 255).all()
    dark, light = (maps.overlay(np.full((8, 8, 3), v, np.uint8), energies) for v in (0, 255))
    assert light.mean() > dark.mean() + 50


@pytest.mark.parametrize("name", ["$1-$5", "A$$AP", "US$_{net}_AU$", "over $10"])
def test_dollar_signs_in_names_are_drawn(name):
    fig = plt.figure()
    drawn = fig.text(0.5, 0.5, text.wrap(name, 40))
    fig.canvas.draw()  # what is no formula, such as $$, raises there
    is_formula = drawn._preprocess_math(drawn.get_text())
    assert is_formula == (name.replace("_", " "), False)


def test_a_title_is_drawn_and_described_with_its_dollar_signs():
    fig, _ = plots.style.figure("Classes", "$1-$5", 3)
    assert fig.get_suptitle() == r"Classes – \$1-\$5" and fig.title == "Classes – $1-$5"
