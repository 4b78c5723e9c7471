"""Trained networks outside of training: predictions for photographs, files in other formats.

`kdnb.load(RUN or FILE)` returns a Classifier. Importing this package needs torch, torchvision,
NumPy, safetensors, Pillow and lazy-loader alone.
"""

from kdnb.deploy.classifier import Classifier, load
from kdnb.deploy.formats import FORMATS, Exported, export
