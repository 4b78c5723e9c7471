"""Data sets as arrays; see kdnb.data.base. A data set is a file in this folder."""

from kdnb.data.base import DATASETS, Batch, Images, Preset, load_data, register
from kdnb.paths import import_files

import_files(__name__, __path__)
