"""The networks. Each returns its feature maps with its logits, without forward hooks.

`create_model(name, num_classes)` builds a network, `load_weights(name, path)` loads one from a
checkpoint with the key names of the official code, RepDistiller, torchvision or timm. To add a
network, put a file into this folder that calls `kdnb.models.base.register`.
"""

from kdnb.models.base import Output, create_model, model_name, register
from kdnb.models.checkpoints import (
    fingerprint,
    has_imagenet_weights,
    imagenet_model,
    imagenet_preprocessing,
    load_weights,
    read_metadata,
    read_state_dict,
    stored_precision,
)
from kdnb.models.pairs import PAIRS
from kdnb.models.preprocessing import Preprocessing
from kdnb.models.shapes import Block, blocks, class_count, example_output, parameter_count
from kdnb.models.timm_networks import (
    has_timm_weights,
    input_size,
    timm_model,
    timm_name,
    timm_preprocessing,
)
from kdnb.models.traced import tapped
from kdnb.paths import import_files

import_files(__name__, __path__)
