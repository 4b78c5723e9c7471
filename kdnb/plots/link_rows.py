"""Links as distributions: which blocks attend, and over which of the other network's."""

from typing import NamedTuple

import numpy as np

TOLERANCE = 0.01  # of a sum: attention may have been computed in bfloat16


class LinkRows(NamedTuple):
    """Links of which each row is the attention of one block, and sums to 1.

    Attributes:
        values: (..., attending blocks, blocks attended to).
        attending: whose blocks attend: "teacher", as in AFD, or "student", as in SemCKD.
        teacher: indices of the teacher's blocks that are compared.
        student: indices of the student's blocks that are compared.
    """

    values: np.ndarray
    attending: str
    teacher: np.ndarray
    student: np.ndarray

    @property
    def attended(self) -> str:
        """Whose blocks the attention is over."""
        return "student" if self.attending == "teacher" else "teacher"

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """Other values of the pairs of blocks, (..., T, S), arranged like the links."""
        compared = values[..., self.teacher[:, None], self.student]
        return compared if self.attending == "teacher" else np.swapaxes(compared, -1, -2)

    def order(self, teacher, student) -> tuple:
        """What belongs to the attending blocks and to the others, of two sequences of blocks."""
        teacher, student = [teacher[i] for i in self.teacher], [student[i] for i in self.student]
        return (teacher, student) if self.attending == "teacher" else (student, teacher)


def link_rows(links: np.ndarray) -> LinkRows:
    """The rows of links (..., T, S), whose attention is told by what sums to 1.

    Blocks without any attention, which a method does not compare, are left out.
    """
    mean = links.reshape(-1, *links.shape[-2:]).mean(0)
    rows, columns = mean.sum(1), mean.sum(0)
    compared = [np.flatnonzero(sums > TOLERANCE) for sums in (rows, columns)]
    rows_sum_to_1 = np.allclose(rows, 1, atol=TOLERANCE)
    columns_sum_to_1 = np.allclose(columns[compared[1]], 1, atol=TOLERANCE)
    attending = "student" if columns_sum_to_1 and not rows_sum_to_1 else "teacher"
    if rows_sum_to_1:  # a student's block may get no attention, and is compared nevertheless
        compared = [np.arange(size) for size in mean.shape]
    empty = LinkRows(links, attending, *compared)
    return empty._replace(values=empty.arrange(links))


def attention_that_differs(links: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The share of attention on other links than in a reference, mean over the attending blocks.

    Args:
        links: (..., T, S).
        reference: (T, S), or of the shape of the links.
    """
    rows = link_rows(links)
    # Half the sum: attention that one link loses, another gains.
    return 0.5 * np.abs(rows.values - rows.arrange(reference)).sum(-1).mean(-1)
