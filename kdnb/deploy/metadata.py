"""What a weights file says of its network; older files are completed from the folder of their run.

The metadata are a dictionary with the keys network, classes, dataset, mean, std, image_size, crop,
top1 (%), method, teacher (its network, or ""), overrides, run (a name) and commit.
"""

from pathlib import Path

from kdnb.errors import InputError
from kdnb.models import Preprocessing, read_metadata
from kdnb.paths import resolve_path, run_folder
from kdnb.runs.digests import check_file
from kdnb.runs.files import damaged
from kdnb.runs.folder import RunFolder
from kdnb.runs.stored_names import with_current_names

PREPROCESSING_KEYS = Preprocessing._fields


def find_weights(source: str | Path, outputs: str | Path = "") -> Path:
    """The weights file of `source`: the file itself, or a run's folder or name.

    Raises InputError if there is no such file or run, for a run without weights, and for weights
    that are not those that their run wrote.
    """
    path = resolve_path(source)
    if path.is_file():
        return check_file(path)
    folder = run_folder(source, outputs)
    if folder is None:
        raise InputError(
            f"{str(source)!r} is neither a weights file nor a run: give the path of a .safetensors "
            "file, or the folder or the name of a finished run"
        )
    return RunFolder(folder).weights


def describe_weights(path: Path) -> dict[str, object]:
    """The metadata of a weights file; what an older file lacks is read from its run's config.json.

    The normalisation of an older file is that of its data set, if kdnb knows it without the images.
    """
    metadata = with_current_names(read_metadata(path))
    if Preprocessing.from_metadata(metadata) and {"network", "classes"} <= metadata.keys():
        return metadata
    if path.name == "student.safetensors" and (path.parent / "config.json").is_file():
        metadata = run_metadata(RunFolder(path.parent)) | metadata
    known = dataset_preprocessing(metadata) or {}
    return known | metadata


def run_metadata(run: RunFolder) -> dict[str, object]:
    """The metadata that follow from a run's config.json. Raises InputError if it is damaged."""
    config = run.config
    try:
        fields = config["run"]
        return {
            "network": fields["student"],
            "classes": config["classes"],
            "dataset": fields["dataset"],
            "image_size": fields["image_size"],
            "method": config["label"],
            "teacher": fields["teacher"],
            "overrides": config["overrides"],
            "run": run.folder.name,
            "commit": config["machines"][-1]["commit"],
        }
    except (KeyError, TypeError, IndexError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None


def dataset_preprocessing(metadata: dict[str, object]) -> dict[str, object] | None:
    """The preprocessing of a known data set under the keys of metadata; None for another one.

    The image size is that of its preset, unless the overrides say otherwise.
    """
    # Here and not at the top: only older files need the data sets, which need more packages.
    from kdnb.data import DATASETS, load_data
    from kdnb.data.cifar100 import STATS
    from kdnb.data.crops import TEST_CROP
    from kdnb.data.photographs import IMAGENET_STATS

    name = metadata.get("dataset")
    if name == "digits":  # scikit-learn comes with the images
        images, _ = load_data(name)
        mean, std, crop = images.mean, images.std, 1.0
    elif name == "cifar100":
        (mean, std), crop = STATS, 1.0
    elif name in ("stanford40", "folder"):
        (mean, std), crop = IMAGENET_STATS, TEST_CROP
    else:
        return None
    override = (metadata.get("overrides") or {}).get("image_size")
    size = override[0] if override else DATASETS[name].preset.image_size
    return {"mean": mean, "std": std, "image_size": size, "crop": crop}
