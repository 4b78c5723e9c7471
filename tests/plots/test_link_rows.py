"""Links of which the teacher's blocks attend, as in AFD, or the student's, as in SemCKD."""

import numpy as np
import pytest
from toy import blocks, random_links

from kdnb import plots
from kdnb.plots.link_rows import attention_that_differs, link_rows


def semckd_links(*shape, seed=0):
    """Attention (..., 6, 6) of the student's blocks 1, 3 and 5 over the teacher's."""
    links = np.zeros((*shape, 6, 6))
    links[..., 1::2, 1::2] = np.swapaxes(random_links(*shape, 3, 3, seed=seed), -1, -2)
    return links


def test_what_sums_to_one_tells_whose_attention_it_is():
    afd = link_rows(random_links(7, 4, 3))
    assert (afd.attending, afd.attended) == ("teacher", "student")
    assert afd.values.shape == (7, 4, 3)
    links = semckd_links(7)
    semckd = link_rows(links)
    assert (semckd.attending, semckd.attended) == ("student", "teacher")
    np.testing.assert_allclose(semckd.values.sum(-1), 1)
    np.testing.assert_array_equal(semckd.values[:, 2, 0], links[:, 1, 5])
    assert semckd.order("abcdef", "uvwxyz") == (["v", "x", "z"], ["b", "d", "f"])


def test_a_student_block_without_attention_is_compared_in_afd():
    links = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    assert link_rows(links).values.shape == (2, 3)


def test_attention_that_differs_is_a_share_of_the_attending_blocks():
    links = np.zeros((4, 4))
    links[0, 1] = links[0, 3] = 1
    moved = links.copy()
    moved[0, 3], moved[2, 3] = 0, 1  # all of one of two blocks' attention
    history = np.stack([links, moved])
    assert attention_that_differs(history, moved).tolist() == [0.5, 0]
    assert attention_that_differs(np.eye(2), np.eye(2)[::-1]) == 1


def test_the_figures_of_links_say_whose_attention_they_show():
    pair = blocks(3, 2), blocks(3, 2)
    links = semckd_links(20)
    matrix = plots.link_matrix(links.mean(0), *pair)
    assert "each student block on the teacher's" in matrix.get_suptitle()
    ax = plots.link_entropy(links, *pair).axes[0]
    assert [tick.get_text().split()[0] for tick in ax.get_xticklabels()] == ["1.2", "2.2", "3.2"]
    assert list(ax.lines[0].get_ydata()) == pytest.approx([np.log2(3)] * 2)
    distances = {"distilled": np.ones((20, 6, 6)) * np.arange(6)[:, None]}
    fig = plots.map_distances(distances, np.ones((20, 6)), links, *pair)
    heights = fig.axes[0].collections[1].get_offsets()[:, 1]
    expected = (links.mean(0) * np.arange(6)[:, None]).sum(0)[1::2]
    assert heights.tolist() == pytest.approx(expected.tolist())
