"""Data sets as arrays, one per file; `kdnb.data.base.register` says how to add one."""

from kdnb.data.base import DATASETS, Batch, Images, Preset, dataset_name, load_data, register
from kdnb.data.convert import from_arrays, from_datasets
from kdnb.paths import import_files

import_files(__name__, __path__)
