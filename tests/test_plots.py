"""Pictures say in their titles what is in the data, and their labels can be read."""

from unittest.mock import patch

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import image_set
from matplotlib.text import Text

from kdnb import plots
from kdnb.runs import Run


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def blocks(groups, per_group, sizes=("64×56×56", "128×28×28", "256×14×14", "512×7×7")):
    return [f"{g + 1}.{b + 1}  {sizes[g]}" for g in range(groups) for b in range(per_group)]


def some_links(*shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.5), shape[:-1])


def title(fig):
    return fig.get_suptitle() or fig.axes[0].get_title()


def crowded(fig):
    """Pairs of texts of the figure that lie over each other, and texts that stick out of it."""
    drawn, draw = [], Text.draw

    def note(text, renderer):
        drawn.append(text)
        draw(text, renderer)

    with patch.object(Text, "draw", note):
        fig.canvas.draw()
    boxes = [
        (t.get_text(), t.get_window_extent().padded(-1)) for t in drawn if t.get_visible() and t.get_text().strip()
    ]
    page = fig.bbox.padded(2)
    out = [text for text, b in boxes if b.x0 < page.x0 or b.y0 < page.y0 or b.x1 > page.x1 or b.y1 > page.y1]
    return out + [(a, b) for i, (a, one) in enumerate(boxes) for b, two in boxes[:i] if one.overlaps(two)]


PAIRS = [(blocks(3, 6), blocks(3, 2)), (blocks(4, 4), blocks(4, 2)), (blocks(3, 6), blocks(3, 6)), (blocks(3, 1),) * 2]
CLASSES = [f"looking_through_a_microscope_{i}" for i in range(30)]


@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids=["wrn", "resnet", "alike", "small"])
def test_nothing_lies_over_anything_else(teacher, student):
    T, S = len(teacher), len(student)
    links, labels = some_links(90, T, S), np.arange(90) % 30
    figures = [
        plots.link_matrix(links.mean(0), teacher, student),
        plots.link_entropy(links, teacher),
        plots.link_history(some_links(240, T, S), teacher, student),
        plots.links_by_class(links, labels, CLASSES, teacher, student),
        plots.map_distances({"plain student": links[0, :, 0] + 0.1, "distilled student": links[0, :, 0]}, teacher),
    ]
    assert [crowded(fig) for fig in figures] == [[]] * 5
    assert all(fig.get_figwidth() <= 9 for fig in figures)


def test_link_matrix_shows_the_links_and_says_how_many_keep_to_their_size():
    teacher, student = ["1.1  8×4×4", "2.1  8×2×2"], ["1.1  4×4×4", "2.1  4×2×2"]
    fig = plots.link_matrix(np.array([[0.9, 0.1], [0.3, 0.7]]), teacher, student)
    assert title(fig) == "80 % of attention joins maps of the same size (without preference: 50 %)"
    assert fig.axes[0].images[0].get_array().tolist() == [[0.9, 0.1], [0.3, 0.7]]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == teacher
    assert "attention" in fig.axes[1].get_ylabel()  # the colour bar
    fig = plots.link_matrix(np.array([[0.9, 0.1], [0.3, 0.7]]), ["1.1", "2.1"], ["1.1", "2.1"])
    assert title(fig) == "Strongest link: teacher 1.1 teaches student 1.1 (0.90)"


def test_entropy_names_the_choosiest_block():
    links = np.full((5, 3, 4), 0.25)
    links[:, 1] = [0, 0, 0.5, 0.5]
    assert "Teacher block 2.1 is the choosiest: its links reach 2.0 of" in title(
        plots.link_entropy(links, blocks(3, 1))
    )


def test_history_says_when_the_way_is_done():
    way = np.array([0, 0.5, 0.95, 1.0])
    fig = plots.link_history(np.stack([1 - way, way], 1)[:, None], ["1.1"], ["1.1", "1.2"])
    assert title(fig) == "By epoch 3 of 4, nine tenths of the links' way is done: 100 % of attention moved"
    assert [ax.get_title() for ax in fig.axes[:4]] == [f"epoch {e}" for e in (1, 2, 3, 4)]
    assert fig.axes[-1].lines[0].get_ydata() == pytest.approx([100, 50, 5, 0])
    assert len(plots.link_history(some_links(1, 2, 3), blocks(2, 1), blocks(3, 1)).axes) == 3  # one epoch


def test_the_class_with_links_of_its_own_comes_first_and_absent_ones_not_at_all():
    links, labels = some_links(120, 3, 4), np.arange(120) % 4
    links[labels == 2] = [1, 0, 0, 0]
    fig = plots.links_by_class(links, labels, ["a_b", "c", "odd_one", "d", "absent"], blocks(3, 1), blocks(4, 1))
    assert fig.axes[0].get_yticklabels()[0].get_text() == "odd one"
    assert len(fig.axes[0].patches) == 4 and "“odd one” most" in title(fig) and "of 4 classes" in title(fig)
    assert fig.axes[1].get_title() == "odd one"
    alone = plots.links_by_class(links, labels * 0, ["one"], blocks(3, 1), blocks(4, 1))
    assert "0 of 1 classes" in title(alone)


def test_map_distances_counts_the_blocks_that_came_closer():
    distances = {"plain student": np.array([0.2, 0.2, 0.1]), "distilled student": np.array([0.1, 0.05, 0.2])}
    said = title(plots.map_distances(distances, blocks(3, 1)))
    assert "closer to 2 of 3 teacher blocks (distance −30 % on average)" in said


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((70.0, 72.5), "Distilled student ends highest, at 72.50 %"),
        ((72.5, 72.5), "All networks end at 72.50 %"),
        ((72.5,), "Plain student ends at 72.50 %"),
        ((72.5, 72.5, 70.0), "Plain student and distilled student end highest, at 72.50 %"),
    ],
)
def test_learning_curves_say_who_ends_highest(tmp_path, ends, said):
    runs = {}
    for name, end in zip(("plain student", "distilled student", "teacher"), ends, strict=False):
        runs[name] = Run(tmp_path / name)
        runs[name].folder.mkdir()
        runs[name].write_history([{"epoch": 1, "test_top1": 99.0}, {"epoch": 2, "test_top1": end}], [])
    fig = plots.learning_curves(runs)
    assert title(fig) == said and crowded(fig) == []


def test_run_links_are_those_of_the_last_epoch(tmp_path, capsys):
    run = Run(tmp_path / "run")
    assert plots.run_links(run) is None and "beta is 0" in capsys.readouterr().out
    assert plots.all_links([run]) == {}
    recipe = {"teacher": "wrn_16_1", "student": "wrn_10_1", "image_size": 8}
    run.start({"recipe": recipe}).write_history([], list(some_links(2, 6, 3)))
    fig = plots.all_links([run])["links-run"]
    np.testing.assert_allclose(fig.axes[0].images[0].get_array(), run.links[-1])
    assert "64×2×2" in fig.axes[0].get_yticklabels()[-1].get_text()


def test_image_grid_keeps_the_shape_of_photographs():
    images = image_set(n=6, classes=3, aspect=torch.tensor([2.0, 0.5, 1, 1, 1, 1]))
    fig = plots.image_grid(images, rows=3)
    assert title(fig) == "6 images in 3 classes"
    assert [ax.get_aspect() for ax in fig.axes[:3]] == [0.5, 2, 1]
    assert sum(len(ax.images) for ax in fig.axes) == 6  # a third row, and nothing to fill it with
    assert title(plots.image_grid(images, columns=2)) == "6 images in 3 classes, 2 of which are shown"
    assert crowded(plots.image_grid(image_set(n=20, classes=10))) == []
    assert plots.in_lines("looking_through_a_microscope") == "looking\nthrough a\nmicroscope"
