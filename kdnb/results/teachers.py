"""Teachers that were trained with several seeds: which belong together, and averages over them."""

import numpy as np
import pandas as pd

# Runs that are equal in these columns have teachers that differ in their seeds alone.
TEACHER_KEY = ["dataset", "teacher", "teacher_overrides", "recipe"]


def group_teachers(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose column teacher_group is equal for teachers that differ in their seeds alone.

    It holds the SHA-256 of the one with the lowest seed. That of a run with the same weights from a
    file is the same. Every other teacher is a group of its own: one from another file, and one that
    was trained with the same seed and has other weights, of which the rarer one is meant.
    """
    trained = frame[frame["teacher_is_trained"].astype(bool)]
    counts = trained.groupby([*TEACHER_KEY, "teacher_seed", "teacher_sha256"]).size()
    by_count = counts.sort_values(ascending=False, kind="stable").reset_index()
    teachers = by_count.drop_duplicates([*TEACHER_KEY, "teacher_seed"]).sort_values("teacher_seed")
    first = teachers.groupby(TEACHER_KEY)["teacher_sha256"].transform("first")
    groups = dict(zip(teachers["teacher_sha256"], first, strict=True))
    return frame.assign(teacher_group=frame["teacher_sha256"].map(lambda sha: groups.get(sha, sha)))


def mean_over_teachers(values: pd.Series, rows: pd.DataFrame) -> pd.Series:
    """The mean over the teachers of each student seed, by seed."""
    return values.groupby(rows["seed"].to_numpy()).mean()


def deviations(rows: pd.DataFrame) -> tuple[float, float, int]:
    """The standard deviations of top1 over students and over teachers, and how many teachers.

    The first is taken within each teacher's students and pooled; the second is that of the means of
    the teachers. Either is NaN where there is one value only.

    Args:
        rows: of one training.
    """
    by_teacher = rows.groupby("teacher_sha256")["top1"]
    students = np.sqrt(by_teacher.var().mean())
    return students, by_teacher.mean().std(), by_teacher.ngroups


def top1_cell(rows: pd.DataFrame) -> str:
    """Mean ± standard deviation over students and, if there are several, over teachers."""
    students, teachers, count = deviations(rows)
    mean = rows.groupby("teacher_sha256")["top1"].mean().mean()
    text = f"{mean:.2f}" if np.isnan(students) else f"{mean:.2f} ± {students:.2f}"
    return text if count == 1 else f"{text}, over {count} teachers ± {teachers:.2f}"
