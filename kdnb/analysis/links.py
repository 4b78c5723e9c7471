"""Controls of links: other seeds, an untrained attention, and the similarity of blocks."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import numpy as np
import pandas as pd
import torch

from kdnb.analysis.compare import cka
from kdnb.analysis.networks import STUDENTS, Networks, load_run
from kdnb.analysis.replicates import method_variants
from kdnb.analysis.survey import Survey
from kdnb.plots.link_rows import link_rows
from kdnb.progress import ignore, with_progress
from kdnb.results.frame import or_warn
from kdnb.results.intervals import interval
from kdnb.runs.run import Run


@torch.no_grad()
def link_controls(
    networks: Networks, survey: Survey, seeds: Sequence[Run], max_images: int = 1000
) -> dict[str, np.ndarray]:
    """The learned links and two controls, as means over the test images: {name: (T, S)}.

    The first control is an attention with its initial weights: its links follow from the sizes and
    statistics of the maps alone. In the second, the learned attention gets the teacher's maps of
    another image: links that stay do not depend on the image.

    Args:
        seeds: runs that differ in their seed. Of two or more, the mean and the standard deviation
            of their links come first, from the training images of the last epoch.
        max_images: of more, as many random ones are used for both controls. Attention is between 0
            and 1, so the standard error of its mean over 1,000 images is 0.016 at most.
    """
    loader = networks.loader
    untrained = None
    untrained_sum = 0.0
    other_image_sum = 0.0
    # In random order: neighbours are often of one class, and similar.
    order = np.random.default_rng(0).permutation(len(loader.images))[:max_images]
    n_batches = -(-len(order) // loader.batch_size)
    batches = np.array_split(order, n_batches)  # of nearly equal sizes: none is a single image
    for index in with_progress(batches, len(batches), "controls"):
        outputs = networks.outputs(loader.take(index))
        s, t = outputs["distilled"], outputs["teacher"]
        if untrained is None:
            with torch.random.fork_rng([]):
                torch.default_generator.manual_seed(0)
                untrained = networks.new_link_loss(s, t).to(loader.device)
            untrained.train()  # its running statistics are still the initial ones
        untrained_sum = untrained_sum + untrained.attention(s, t).sum(0)
        other_image = t._replace(feats=tuple(feat.roll(1, 0) for feat in t.feats))
        attention = networks.link_loss.attention(s, other_image)
        other_image_sum = other_image_sum + attention.sum(0)
    controls = {}
    replicates = last_links(seeds)
    if len(replicates) > 1:
        controls[f"mean of {len(replicates)} seeds"] = np.mean(replicates, axis=0)
        controls["their standard deviation"] = np.std(replicates, axis=0, ddof=1)
    n = len(order)
    controls["this run"] = survey.links.mean(0)
    controls["untrained attention"] = (untrained_sum / n).cpu().numpy()
    controls["the teacher sees another image"] = (other_image_sum / n).cpu().numpy()
    return controls


def last_links(runs: Sequence[Run]) -> list[np.ndarray]:
    """The links (T, S) of each run in its last epoch, mean over the training images.

    A run whose history.npz is missing or damaged is left out, the latter with a warning.
    """
    read = (or_warn("the controls", attrgetter("links_by_epoch"), run) for run in runs)
    return [links[0][-1] for links in read if links is not None]


def links_of_methods(networks: Networks, run: Run) -> dict[str, np.ndarray]:
    """The links of a run and of other methods between the same networks: {method: (T, S)}.

    They are means over the training images in the last epoch; those of other methods, of finished
    runs that differ in method and seed alone, are means over the seeds, too.
    """
    by_method: dict[str, list] = {}
    for other in method_variants(run):
        by_method.setdefault(other.label, []).extend(last_links([other]))
    panels = {name: np.mean(links, axis=0) for name, links in by_method.items() if links}
    return {run.label: networks.links_by_epoch[-1]} | panels


def similarity_panels(
    survey: Survey, similarity: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The links, the nearness of each student's maps to the teacher's, and CKA: {name: (T, S)}.

    All are means over the test images. Nearness is 1 for equal maps, and 0 for maps that are as
    distant as a uniform map or further.

    Args:
        similarity: {student: (T, S)}, from `compare.cka`.
    """
    panels = {"links": survey.links.mean(0)}
    uniform = survey.uniform_map_distance.mean(0).clip(1e-12)[:, None]  # t 1
    for role, distances in survey.distances.items():
        panels[f"nearness of maps, {role}"] = (1 - distances.mean(0) / uniform).clip(0, 1)
    for role, values in similarity.items():
        panels[cka_name(role)] = values
    return panels


def cka_name(role: str) -> str:
    """What tables and figures call the similarity of the teacher and a student."""
    return "CKA with the " + {"distilled": "distilled student"}.get(role, role)


def link_correlations(runs: Sequence[Run]) -> pd.DataFrame:
    """Correlation of each run's links in the last epoch with CKA and with depth: a row per run.

    The columns are CKA of the teacher with the baseline, CKA with the distilled student, and the
    closeness of two blocks in relative depth. Correlations are over all pairs of blocks that are
    compared; the mean of each attending block is subtracted first, because its links sum to one.
    With two or more runs,
    the last row holds their mean and its interval.

    Runs that did not keep their weights, or whose baseline is not finished, are left out; damaged
    ones with a warning.
    """
    rows = {}
    for run in runs:
        weights = run.folder / "losses.safetensors", run.baseline.folder / "student.safetensors"
        is_finished = run.done and run.baseline.done  # else load_run would train
        if not (is_finished and all(path.is_file() for path in weights)):
            continue
        networks = or_warn("the correlations", load_run, run, ignore)
        if networks is not None:
            rows[f"seed {run.seed}"] = correlations(networks)
    table = pd.DataFrame.from_dict(rows, "index")
    formatted = table.map("{:.2f}".format)
    if len(table) > 1:
        formatted.loc["mean, 95 %"] = [interval(table[name].to_numpy(), ".2f") for name in table]
    return formatted


def correlations(networks: Networks) -> dict[str, float]:
    """Correlation of the links in the last epoch with CKA and with closeness in depth."""
    links = networks.links_by_epoch[-1]
    similarity = cka(networks.models, networks.loader)
    columns = {cka_name(role): similarity[role] for role in STUDENTS}
    teacher_depth, student_depth = (np.linspace(0, 1, blocks) for blocks in links.shape)
    columns["closeness in depth"] = -np.abs(np.subtract.outer(teacher_depth, student_depth))
    rows = link_rows(links)
    row = {}
    for name, values in columns.items():
        values = rows.arrange(values)
        centred = values - values.mean(1, keepdims=True)
        row[name] = np.corrcoef(rows.values.flat, centred.flat)[0, 1]
    return row
