"""Which runs belong together: the seeds of one training, and students with one recipe."""

import pandas as pd

CITATION_KEY = ["dataset", "network", "method", "teacher"]  # what a run and a citation share

# Columns that tell apart trainings of the same dataset, network, method and teacher; and how a name
# says so.
DISTINCTIONS = {
    "origin": " ({})",
    "mix": " ({})",
    "precision": " ({})",
    "teacher_group": " (weights {:.4})",
    "data_hash": " (images {:.4})",
    "decoding": " (photographs decoded by version {})",
    "train_images": " ({:,} images)",
    "code": " ({})",
}

# Runs that are equal in these columns differ in their seeds alone, and may be averaged.
TRAINING_KEY = [*CITATION_KEY, "left_out", "overrides", "teacher_overrides", *DISTINCTIONS]


def describe_baselines_as_students(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame in which a baseline has the overrides of the students with the same recipe.

    A network that is trained on labels alone may be a teacher as well, whose preset may differ:
    alone, its overrides are those from the nearer preset.
    """
    is_changed = (frame["method"] == "none") & (frame["overrides"] != "")
    students = frame[frame["method"] != "none"].drop_duplicates("recipe").set_index("recipe")
    for index in frame.index[is_changed & frame["recipe"].isin(students.index)]:
        student = students.loc[frame.at[index, "recipe"]]
        for column in ("overrides", "override_values"):
            frame.at[index, column] = student[column]
    return frame


def is_full_recipe(runs: pd.DataFrame) -> pd.Series:
    """Whether each run of a frame, and its teacher, followed the preset to the end."""
    return (runs["overrides"] == "") & (runs["teacher_overrides"] == "")


def drop_duplicate_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Each seed of a training once, whether its teacher was trained or the same one from a file."""
    key = [*TRAINING_KEY, "teacher_sha256", "seed"]
    return runs.sort_values("seed", kind="stable").drop_duplicates(key)


def disambiguate(runs: pd.DataFrame, names: pd.Series) -> pd.Series:
    """The names, longer where one name would stand for several trainings."""
    for column, template in DISTINCTIONS.items():
        is_ambiguous = runs.groupby(names)[column].transform("nunique") > 1
        names = names + runs[column].map(template.format).where(is_ambiguous, "")
    return names
