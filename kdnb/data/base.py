"""Data sets as arrays of uint8 pixels, and the table that they are registered in.

Each data set is a file in this folder that registers its load function together with its Preset.
`kdnb.data.loader` augments the images on the device.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from kdnb.data.digests import digest_of_load
from kdnb.data.images import Images
from kdnb.data.preset import Preset
from kdnb.device import system_errors
from kdnb.errors import InputError, choose
from kdnb.paths import data_folder
from kdnb.sources import claim

Load = Callable[..., tuple[Images, Images]]
Digest = Callable[[Path], str]


class Dataset(NamedTuple):
    """A registered data set, see `register`."""

    preset: Preset
    load: Load
    digest: Digest
    test_images: int
    cited_as: str
    class_count: int


DATASETS: dict[str, Dataset] = {}


def register(
    name: str,
    preset: Preset,
    digest: Digest | None = None,
    test_images: int = 0,
    cited_as: str = "",
    class_count: int = 0,
) -> Callable[[Load], Load]:
    """Returns a decorator that registers a load function as a data set.

    The function is called as `load(root, size, skip_damaged=...)` with the arguments of
    `load_data`: the folder with the data, the side of the stored images, and whether images that
    cannot be decoded are left out. It returns the training and the test Images.

    Example::

        @register("noise", Preset(student="wrn_16_1", teacher="wrn_16_2", image_size=32, ...))
        def load(root, size, *, skip_damaged): ...

    Args:
        name: name of the data set.
        preset: how it is trained by default.
        digest: function of the root folder that returns eight hex digits, different ones for
            different images in it, or "" if there are no images. None: they are computed from what
            `load` returns, once in a process. `kdnb.data.digests` has others.
        test_images: number of test images of the published data set; 0 if there is no such number.
        cited_as: name of the data set whose published results tables quote for this one, such as
            "cifar100" for its images with another preset; by default its own.
        class_count: number of its classes, if that is known without the images; otherwise 0.
    """

    def add(load: Load) -> Load:
        claim("data set", name, load, getattr(DATASETS.get(name), "load", None))
        from_load = digest or digest_of_load(load, preset.stored())
        DATASETS[name] = Dataset(preset, load, from_load, test_images, cited_as, class_count)
        return load

    return add


def dataset_name(name: str) -> str:
    """Returns the name under which a data set is registered, given in any case.

    Raises InputError for an unknown one.
    """
    spellings = {known.lower(): known for known in DATASETS}
    return choose("dataset", spellings.get(name.lower(), name), DATASETS)


@system_errors()
def load_data(
    name: str, root: str | Path = "", size: int = 0, skip_damaged: bool = False
) -> tuple[Images, Images]:
    """Returns the training and the test images of a data set.

    Args:
        name: name in DATASETS: `digits` (part of scikit-learn), `cifar100`, `stanford40`,
            `tiny_imagenet` or one of torchvision's such as `torch/food101` (downloaded if missing),
            `imagenet`, `folder` (your own images, `root/train/CLASS/*.jpg` and
            `root/{valid,val,test}/CLASS/*.jpg`), or another that was registered.
        root: folder that holds the data; "": `kdnb.paths.data_folder()`.
        size: side in pixels at which the images are stored, of photographs the shorter one; 0: the
            preset's.
        skip_damaged: whether photographs that cannot be decoded are left out, with a printed line.
            If not, they raise InputError.

    Raises InputError for an unknown name, a size that the data set does not come in, data that are
    missing and cannot be downloaded, damaged photographs, test images without a label, and a cache
    folder without write access.
    """
    dataset = DATASETS[dataset_name(name)]
    preset = dataset.preset
    if size:
        preset = replace(preset, stored_size=0)  # size already is the size to store
    train, test = dataset.load(data_folder(root), preset.stored(size), skip_damaged=skip_damaged)
    if test.unlabelled:
        raise InputError(
            f"{test.unlabelled:,} of the {len(test):,} test images of {name} have no label"
        )
    return train, test
