"""Figures draw what they are given, and their labels can be read."""

import warnings
from itertools import pairwise
from unittest.mock import patch

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import image_set
from drawing import crowded
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from PIL import Image

from kdnb import plots
from kdnb.analysis import Survey, links_by_class
from kdnb.analysis.compare import Predictions
from kdnb.analysis.maps import Gallery
from kdnb.data.loader import Loader
from kdnb.plots import maps, style

SHAPES = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
NAMES = ["writing_on_a_book", "looking_through_a_microscope", "running"]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def blocks(groups, per_group):
    return [(f"{g + 1}.{b + 1}", SHAPES[g]) for g in range(groups) for b in range(per_group)]


def some_links(*shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.5), shape[:-1])


def survey_of(links, labels, names):
    return Survey(links, {}, np.zeros(links.shape[:2]), Predictions(names, labels, {}))


def normalised(maps):
    return (maps / np.sqrt((maps**2).sum((1, 2), keepdims=True))).astype(np.float32)


def some_gallery(n=3):
    rng = np.random.default_rng(0)
    sides = {"teacher": (8, 8, 4, 4, 2, 2), "baseline": (8, 4, 2), "distilled": (8, 4, 2)}
    maps = {role: [normalised(rng.random((n, h, h))) for h in its] for role, its in sides.items()}
    students, said = (
        ("baseline", "distilled"),
        {"baseline": [NAMES[1], NAMES[1], NAMES[0]][:n], "distilled": NAMES[:n]},
    )
    distances = np.broadcast_to(np.arange(6)[:, None] / 10 + np.arange(3) / 100, (n, 6, 3))
    pixels = [rng.integers(0, 256, (side, side, 3)).astype(np.uint8) for side in (8, 300, 262)[:n]]
    return Gallery(
        NAMES[:n],
        pixels,
        maps,
        dict.fromkeys(students, distances),
        said,
        (blocks(3, 2), blocks(3, 1)),
    )


def epochs(line, role, run, top1, **more):
    order = [*plots.ROLES].index(role)
    what = {"line": line, "order": order, "run": run, "epoch": np.arange(len(top1)) + 1}
    return pd.DataFrame({**what, "test_top1": top1, **more})


def texts(labels):
    return [label.get_text() for label in labels]


def test_a_number_looks_alike_in_every_figure_and_no_two_lines_do():
    styles = plots.line_styles({"kd": 5, "afd": 2, "alone": 1, "wide": 1, "wider": 1, "crd": 18})
    assert styles["afd"] == plots.ROLES["distilled"] and styles["alone"] == plots.ROLES["baseline"]
    assert plots.line_styles({"crd": 18}) == {"crd": styles["crd"]} == {"crd": plots.STYLES[18]}
    many = plots.line_styles({f"pair {i // 18}, method {i % 18}": i % 18 for i in range(234)})
    assert len(many) == 234 and set(many.values()) == {
        *plots.STYLES
    }  # of more lines than styles some look alike
    assert (
        len(set(styles.values())) == 6
        and len({look[:2] for look in plots.STYLES}) == len(plots.STYLES) == 35
    )
    assert all(one[0] != two[0] and one[1] != two[1] for one, two in pairwise(plots.STYLES[:19]))


@pytest.mark.parametrize(
    ("T", "S"), [((3, 6), (3, 2)), ((4, 4), (4, 4)), ((3, 1), (3, 1))], ids=["wrn", "many", "few"]
)
def test_nothing_lies_over_anything_else(T, S):
    both, named = (blocks(*T), blocks(*S)), "stanford40, resnet34 → resnet18"
    links, names = (
        some_links(90, len(both[0]), len(both[1])),
        [f"looking_through_a_microscope_{i}" for i in range(30)],
    )
    figures = [
        plots.link_matrix(links.mean(0), *both, named),
        plots.link_entropy(links, *both, named),
        plots.link_history(links, *both, named),
        plots.links_by_class(
            links_by_class(survey_of(links, np.arange(90) % 30, names)), *both, named
        ),
        plots.map_distances(
            {"baseline": links + 0.1, "distilled": links}, links[..., 0], links, both[0], named
        ),
    ]
    for fig in figures:
        fig.fit(7)  # a page
    assert [crowded(fig) for fig in figures] == [[]] * 5
    assert all(fig.get_figwidth() <= 9 and fig.title.endswith(f" – {named}") for fig in figures)


def test_links_of_the_last_epoch_are_drawn_from_0_to_1_beside_names_and_sizes():
    both = [*zip(np.array(["1.1", "2.1"]), np.array([(8, 4, 4), (8, 2, 2)]), strict=True)]
    means = np.array([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.3, 0.7]]])
    ax = plots.run_links((means, both, both)).axes[0]
    assert ax.images[0].get_array().tolist() == [[0.9, 0.1], [0.3, 0.7]] and ax.images[
        0
    ].get_clim() == (0, 1)
    assert texts(ax.get_yticklabels()) == ["1.1  8×4×4", "2.1  8×2×2"]
    assert texts(ax.get_xticklabels()) == ["1.1\n8×4×4", "2.1\n8×2×2"]
    assert ax.collections[0].texts == ["0.90", "0.10", "0.30", "0.70"] and crowded(ax.figure) == []
    assert ax.collections[0].get_facecolor()[:, 0].tolist() == [0, 1, 1, 0]
    assert plots.run_links(None) is None


def test_history_shows_epochs_and_how_far_each_is_from_the_last():
    way = np.array([0, 0.5, 0.95, 0.8, 0.92, 1.0])  # strays once, at epoch 4
    *panels, below, _ = plots.link_history(
        np.stack([1 - way, way], 1)[:, None], blocks(1, 1), blocks(1, 2)
    ).axes
    assert [ax.get_title() for ax in panels] == [f"epoch {e}" for e in (1, 2, 3, 4, 6)]
    assert [ax.images[0].get_clim() for ax in panels] == [(0, 1)] * 5
    assert below.lines[0].get_ydata() == pytest.approx(100 * (1 - way)) and len(below.lines) == 1


def test_the_class_with_links_of_its_own_comes_first():
    links, labels = some_links(120, 3, 4), np.arange(120) % 4
    links[labels == 2] = [1, 0, 0, 0]
    told = links_by_class(survey_of(links, labels, ["a_b", "c", "odd_one", "d"]))
    bars, first, *_ = plots.links_by_class(told, blocks(3, 1), blocks(4, 1)).axes
    assert texts(bars.get_yticklabels())[0] == first.get_title() == "odd one"
    assert [p.get_width() for p in bars.patches] == pytest.approx(
        sorted(100 * told.deviation, reverse=True)
    )
    np.testing.assert_allclose(first.images[0].get_array(), told.links[2] - told.mean)
    alone = plots.links_by_class(
        links_by_class(survey_of(links, labels * 0, ["one"])), blocks(3, 1), blocks(4, 1)
    )
    assert (
        len(alone.axes) == 3 and crowded(alone) == []
    )  # the bar, the one difference, which is none, its scale


def test_points_over_blocks_stand_where_they_are():
    links = np.array([[[1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], [[0, 1, 0, 0], [0.5, 0.5, 0, 0]]])
    apart = np.broadcast_to([0.1, 0.3, 9, 9], (2, 2, 4))
    distances = {"baseline": 2 * apart, "distilled": apart}
    flat = np.array([[0.1, 0.2], [0.3, 0.2]])
    _, *points = plots.map_distances(distances, flat, links, blocks(2, 1)).axes[0].collections
    expected = [[0.4, 0.4], [0.2, 0.2], [0.2, 0.2]]
    assert [p.get_offsets()[:, 1].tolist() for p in points] == [
        pytest.approx(values) for values in expected
    ]
    assert [tuple(p.get_facecolor()[0]) for p in points[:2]] == [
        to_rgba(plots.ROLES[role].color) for role in distances
    ]
    ax = plots.link_entropy(links, blocks(2, 1), blocks(4, 1)).axes[0]
    of_mean, of_images = (p.get_offsets()[:, 1].tolist() for p in ax.collections[1:])
    assert of_mean == pytest.approx([1, 1]) and of_images == pytest.approx([0, 1], abs=1e-6)
    assert ax.lines[0].get_ydata() == [2, 2]  # log2 of 4, all blocks alike


def test_learning_curves_are_means_in_a_band_and_their_end_is_enlarged():
    parts = [epochs("afd", "distilled", f"afd{seed}", np.arange(9.0) + seed) for seed in range(3)]
    fig = plots.learning_curves(
        pd.concat([*parts, epochs("none", "baseline", "none0", np.full(9, 5.0))]), "cifar100"
    )
    whole, late = fig.axes
    drawn = {
        line.get_color(): line.get_ydata().tolist() for line in whole.lines if len(line.get_ydata())
    }
    means = {"distilled": list(range(1, 10)), "baseline": [5] * 9}
    assert drawn == {plots.ROLES[role].color: values for role, values in means.items()}
    tops = [path.vertices[:, 1].max() for band in whole.collections for path in band.get_paths()]
    assert tops == pytest.approx([10.0])  # 9 ± 1, of the line that has several runs
    assert late.lines[0].get_xdata().tolist() == [7, 8, 9] and crowded(fig) == []
    assert (
        texts(fig.legends[0].get_texts()) == ["afd", "none"]
        and "up to 3 runs – cifar100" in fig.title
    )
    few = plots.learning_curves(parts[0][:3])
    assert (
        len(few.axes) == 1 and few.axes[0].lines[0].get_marker() == plots.ROLES["distilled"].marker
    )
    assert plots.learning_curves(parts[0][:0]) is None


def test_many_lines_have_a_panel_each_beside_the_baseline():
    alone = epochs("net, labels only", "baseline", "none0", np.full(9, 5.0))
    taught = [
        epochs(f"net, m{i} from t", "distilled", f"m{i}", np.arange(9.0) + i).assign(order=3 + i)
        for i in range(12)
    ]
    fig = plots.learning_curves(pd.concat([alone, *taught]), "digits")
    assert [ax.get_title() for ax in fig.axes] == [
        f"net,\nm{i} from t" for i in range(12)
    ] and crowded(fig) == []
    for i, ax in enumerate(fig.axes):
        drawn = [line.get_ydata().tolist() for line in ax.lines]
        assert sorted(drawn) == sorted(
            [[5.0] * 6, list(np.arange(3.0, 9) + i)]
        )  # from the fourth epoch on


def test_learning_curves_mark_where_the_learning_rate_drops_and_what_chance_is():
    lr = [
        0.05,
        0.1,
        0.1,
        0.01,
        0.006,
        0.003,
        0.001,
        0.001,
        0.001,
    ]  # of which two are falls to less than half
    fig = plots.learning_curves(
        epochs("afd", "distilled", "afd0", np.arange(9.0), lr=lr, classes=20)
    )
    whole, late = fig.axes
    drops = [
        [line.get_xdata()[0] for line in ax.lines if len(line.get_ydata()) == 2]
        for ax in (whole, late)
    ]
    assert drops == [[3, 6, 0], []] and whole.lines[-1].get_ydata() == [
        5,
        5,
    ]  # the end of an epoch, and one of 20
    assert texts(fig.legends[0].get_texts()) == ["afd", "learning rate drops", "chance (5 %)"]
    for width in (9, 7):
        fig.fit(width)
        assert crowded(fig) == []


def test_accuracy_over_time_has_a_line_per_run_and_tells_devices_apart():
    parts = [epochs("alone", "baseline", s, [1.0, 2.0], spent=[60 * s, 120 * s]) for s in (1, 2)]
    ax = plots.accuracy_over_time(pd.concat(parts)).axes[0]
    assert [line.get_xdata().tolist() for line in ax.lines if len(line.get_xdata())] == [
        [1, 2],
        [2, 4],
    ]
    assert ax.get_xlabel().endswith("(minutes)")
    parts = [
        part.assign(device=device) for part, device in zip(parts, ("H200", "EPYC"), strict=True)
    ]
    assert texts(plots.accuracy_over_time(pd.concat(parts)).legends[0].get_texts()) == [
        "alone, H200",
        "alone, EPYC",
    ]


def test_published_points_stand_where_they_are(tmp_path):
    table = pd.DataFrame({"line": [*["alone"] * 4, "afd"], "top1": [72.0, 74.0, 72.9, 73.3, 75.5]})
    table["study"] = [*["this study"] * 2, *["published"] * 2, "published, best epoch"]
    fig = plots.with_published(table)
    (here,) = (line for line in fig.axes[0].lines if line.get_marker() == "o")
    cited = {
        m.get_label(): m.get_offsets()[:, 0].tolist()
        for m in fig.axes[0].collections
        if isinstance(m, PathCollection)
    }
    assert cited == {"published": [72.9, 73.3], "published, best epoch": [75.5]}  # each by itself
    assert here.get_xdata() == [73] and {*cited} < {*texts(fig.legends[0].get_texts())}
    assert crowded(fig) == []
    assert texts(fig.axes[0].get_yticklabels()) == ["alone", "afd"]
    paths = plots.save(
        {"published": fig, "none": plots.with_published(table[:0])}, tmp_path / "figures"
    )
    assert (
        paths == [tmp_path / "figures" / "published.png"] and Image.open(paths[0]).width == 9 * 150
    )
    plots.contents(tmp_path / "figures")
    shown = (tmp_path / "figures/README.md").read_text()
    assert shown == "# Figures\n\n![Test accuracy here and as published](published.png)\n"


@pytest.mark.parametrize(
    ("kind", "told"), [("pdf", b"/MediaBox [ 0 0 244.8 "), ("svg", b' width="244.8pt"')]
)
def test_a_figure_is_kept_for_a_column_of_a_paper(tmp_path, kind, told):
    fig = plots.learning_curves(epochs("afd", "distilled", "afd0", np.arange(9.0)))
    (path,) = plots.save({"curves": fig}, tmp_path, kind=kind, width=3.4)
    assert (
        path.suffix == f".{kind}"
        and told in path.read_bytes()
        and b"/Type3" not in path.read_bytes()
    )


def test_names_of_files_are_short_and_tell_apart():
    long = [
        f"digits, epochs 20, batch_size 64, lr 0.01, image_size 8, train_limit -1, data {i}"
        for i in range(2)
    ]
    figures = plots.each(
        plots.with_published, dict.fromkeys(["digits", *long], pd.DataFrame(columns=["line"]))
    )
    assert (
        min(figures, key=len) == "with-published-digits"
        and len(figures) == 3
        and max(map(len, figures)) < 66
    )


def test_names_of_classes_in_any_script_are_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a glyph that is missing
        for name in ("Ärger_и_θ", "騎馬_走る", "گربه"):
            fig, ax = plt.subplots()
            ax.set_title(style.in_lines(name, 30))
            fig.canvas.draw()
    assert style.words("Ärger_и_θ") == "Ärger и θ"
    with patch.object(style, "font_with", return_value=""):
        assert style.words("a_Ä騎") == "a AQi"


@pytest.mark.parametrize("groups", [(3, 2), (4, 2), (3, 6)])
def test_names_of_blocks_have_room_beside_five_matrices(groups):
    its = blocks(*groups)
    fig = plots.block_matrices(
        {f"{i}": some_links(len(its), len(its)) for i in range(5)}, its, its, "Links"
    )
    fig.fit(9)
    assert crowded(fig) == [] and len(fig.axes) == 6


def test_step_times_stack_the_parts_beside_the_floor():
    parts = pd.DataFrame({"part": ["teacher", "student"], "ms": [4.0, 9.0]})
    floor = pd.DataFrame({"training": ["labels only", "kd"], "ms": [3.0, 5.0]})
    whole = pd.DataFrame(
        {"training": ["kd", "labels only"], "step": "engine", "ms": [20.0, 8.0], "images/s": 3200.0}
    )
    ax = plots.step_times(whole, parts, floor).axes[0]
    assert [(p.get_x(), p.get_width()) for p in ax.patches] == [(0, 4), (4, 9), (0, 20), (0, 8)]
    ends = [line.tolist() for line in ax.collections[0].get_segments()]
    assert ends == [[[5, 0.6], [5, 1.4]], [[3, 1.6], [3, 2.4]]] and crowded(ax.figure) == []


class Photographs(list):
    targets, classes = [0, 1], ("riding_a_horse", "smoking")


def test_images_keep_the_shape_of_photographs(tmp_path):
    images = image_set(n=6, classes=3, aspect=torch.tensor([2.0, 0.5, 1, 1, 1, 1]))
    fig = plots.image_grid(images, rows=3)
    assert [ax.get_aspect() for ax in fig.axes[:3]] == [0.5, 2, 1]
    assert sum(len(ax.images) for ax in fig.axes) == 6  # a third row, and nothing to fill it with
    assert (
        plots.image_grid(images, columns=2).title == "6 images in 3 classes, 2 of which are shown"
    )
    assert sum(p.get_height() for p in plots.image_sizes(images).axes[0].patches) == 6
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (100, 40)).save(tmp_path / "JPEGImages" / "wide.png")
    photographs = Photographs()
    photographs.folder, photographs.names = tmp_path, ["wide.png"]
    points = plots.image_sizes(image_set(n=5), photographs).axes[0].collections[0]
    assert (
        points.get_offsets().tolist() == [[100, 40]] and plots.image_sizes(image_set(n=5)) is None
    )


@pytest.mark.parametrize("classes", [3, 40, 100])
def test_class_balance_can_be_read_with_many_classes(classes):
    images = image_set(n=3 * classes, classes=classes)
    fig = plots.class_balance(images, images.limit(2 * classes))
    bars = [p.get_height() for ax in fig.axes for p in ax.patches]
    assert bars == ([3] * classes + [2] * classes if classes <= 12 else []) and crowded(fig) == []
    assert (
        fig.axes[0].get_title("left")
        == f"train: {3 * classes} images in {classes} classes, 3 in each"
    )
    uneven = plots.class_balance(images.limit(2 * classes + 1), images.limit(2 * classes))
    assert len(uneven.axes[0].patches) == classes and crowded(uneven) == []


def test_augmentations_show_the_image_itself_and_what_batches_make_of_it():
    images = image_set(n=12)
    fig = plots.augmentations(
        Loader(images, 4, 8, train=True, padding=2, flip=True), columns=4, rows=2
    )
    assert fig.title.endswith(
        "8 × 8 pixels: crops shifted by up to 2 px, flipped with probability ½"
    )
    stored, *views = (np.asarray(ax.images[0].get_array()) for ax in fig.axes[:4])
    assert (stored == images.images[0].permute(1, 2, 0).numpy()).all() and len(
        {v.tobytes() for v in views}
    ) > 1
    whole = plots.augmentations(Loader(images, 4, 8, train=True), columns=2, rows=1)
    assert (np.asarray(whole.axes[1].images[0].get_array()) == stored).all()


def test_boxes_are_drawn_where_they_are():
    box = torch.tensor([10.0, 10, 50, 30])
    fig = plots.person_boxes(
        Photographs((Image.new("RGB", (100, 40)), (label, box)) for label in (0, 1)), rows=1
    )
    assert fig.axes[0].patches[0].get_bbox().bounds == (10, 10, 40, 20)
    assert (
        fig.axes[1].get_title() == "smoking\n20% of 100 × 40" and plots.person_boxes(None) is None
    )


def test_map_depth_has_a_column_per_pair_and_a_row_per_network():
    gallery = some_gallery()
    fig = plots.map_depth(gallery, [(0, 0), (3, 1), (4, 2)], image=1)
    assert len([ax for ax in fig.axes if ax.images]) == 9 and crowded(fig) == []
    assert [ax.get_xlabel() for ax in fig.axes[3:6]] == [
        "distance 0.00",
        "distance 0.31",
        "distance 0.42",
    ]
    assert (
        fig.axes[1].get_title() == "2.2\n128×28×28" and fig.axes[4].get_title() == "2.1\n128×28×28"
    )
    most = maps.strongest(gallery, [(0, 0), (3, 1), (4, 2)], [1])
    shown = maps.blend(gallery.pixels[1], gallery.maps["teacher"][3][1], most)
    even = {
        role: [np.full(m.shape, m[0].size ** -0.5) for m in its]
        for role, its in gallery.maps.items()
    }
    corner = {
        role: [np.where(np.arange(m[0].size).reshape(m.shape[1:]) == 0, 1.0, 0 * m) for m in its]
        for role, its in even.items()
    }
    ends = [maps.strongest(gallery._replace(maps=its), [(0, 0)]) for its in (even, corner)]
    assert ends == [1.5, 2.5] and 1.5 <= most <= 2.5
    assert (fig.axes[1].images[0].get_array() == shown).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_maps_stand_below_their_images_and_over_what_was_said(n):
    gallery, title = some_gallery(n), "only the distilled student is right: 1 of 360 test images"
    near, said = (
        plots.map_grid(gallery, (2, 1), "digits"),
        plots.map_grid(gallery, (2, 1), title, said=True),
    )
    assert (
        len([ax for ax in near.axes if ax.images]) == 4 * n and crowded(near) == crowded(said) == []
    )
    across, down = (
        texts(ax.title for ax in near.axes[1:4]),
        [ax.get_ylabel() for ax in near.axes[n : 4 * n : n]],
    )
    assert (down if n > 2 else across) == [f"{role}\n2.1" for role in gallery.maps]
    assert {ax.get_xlabel() for ax in near.axes if ax.get_xlabel()} == {"distance 0.21"}
    expected = sorted(
        name.replace("_", " ") for names in gallery.predicted.values() for name in names
    )
    assert (
        sorted(
            ax.get_xlabel().strip("“”").replace("\n", " ") for ax in said.axes if ax.get_xlabel()
        )
        == expected
    )
    assert plots.map_grid(None, (2, 1)) is None


def test_a_map_over_mid_grey_has_the_colour_that_its_bar_gives_it():
    energies = normalised(np.ones((1, 4, 4)) + np.arange(4))[0]
    fig, ax = plt.subplots()
    maps.map_bar(fig, ax, "energy")
    bar = fig.axes[-1]._colorbar
    expected = bar.cmap(bar.norm(energies * 4))[..., :3]  # in units of the root mean square, 1 / 4
    seen = maps.blend(np.full((8, 8, 3), 127, np.uint8), energies)
    assert (
        seen.shape == (256, 256, 3) and np.abs(seen[32::64, 32::64] / 255 - expected).max() < 0.02
    )
    assert np.abs(np.diff(seen.astype(int), axis=1)).max() < 8  # no steps between cells
    assert (
        maps.blend(np.full((300, 300, 3), (200, 0, 9), np.uint8), 0 * energies) == (200, 0, 9)
    ).all()
    dark, light = (maps.blend(np.full((8, 8, 3), v, np.uint8), energies).mean() for v in (0, 255))
    assert light > dark + 50  # the image shows through
