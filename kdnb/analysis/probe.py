"""Linear probes: how well frozen features serve another data set, as in the tables of CRD."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from kdnb.data import Images, load_data
from kdnb.data.loader import Loader
from kdnb.deploy import Classifier
from kdnb.errors import InputError
from kdnb.progress import with_progress
from kdnb.results.intervals import difference, share_ends

BATCH_SIZE = 100


def linear_probe(
    classifiers: Mapping[str, Classifier],
    dataset: str,
    data_root: str = "",
    train_images: int = 0,
    device: str | torch.device = "cpu",
) -> pd.DataFrame:
    """The accuracy of a logistic regression on each network's features of another data set.

    The features are the input of the classifier, in eval mode; each is standardised. The regression
    has scikit-learn's default penalty. A row per network, with the columns network, features (their
    number), top-1 (%), low and high, its 95 % interval; gain, gain low and gain high, the
    difference to the baseline in percentage points.

    Args:
        classifiers: {name: network}, among them "baseline".
        dataset: name of the data set, as `kdnb.load_data` takes it.
        data_root: folder of its data.
        train_images: number of training images, taken evenly from all classes; 0: all.
        device: where the features are computed.

    Raises InputError for a data set that is unknown or missing, and for a network whose features
    are not known.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train, test = load_data(dataset, data_root)
    train = train.limit(min(train_images, len(train)))
    correct, widths = {}, {}
    for name, classifier in classifiers.items():
        features = [features_of(classifier, images, device, name) for images in (train, test)]
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        regression.fit(features[0], train.labels.numpy())
        correct[name] = regression.predict(features[1]) == test.labels.numpy()
        widths[name] = features[0].shape[1]
    rows = []
    for name, is_correct in correct.items():
        low, high = share_ends(is_correct)
        row = {"network": name, "features": widths[name], "top-1 (%)": 100 * is_correct.mean()}
        row |= {"low": low, "high": high}
        if name != "baseline":
            change = difference(correct["baseline"], is_correct)
            row |= {"gain": change.gain, "gain low": change.low, "gain high": change.high}
        rows.append(row)
    return pd.DataFrame(rows)


@torch.no_grad()
def features_of(
    classifier: Classifier, images: Images, device: str | torch.device, name: str
) -> np.ndarray:
    """The inputs of a network's classifier, float32 (n, channels), for the images of a split.

    They are prepared as the network expects, whatever the size and statistics of the data set:
    resized, and normalised by the network's mean and standard deviation.
    """
    mean, std, size, _ = classifier.preprocessing
    images = replace(images, mean=mean, std=std)
    stored_size = size if images.aspect is not None else images.size
    loader = Loader(images, BATCH_SIZE, stored_size, device=device)
    network = classifier.network.to(device).eval()
    parts = []
    for batch in with_progress(loader.epoch(), len(loader), name):
        pixels = batch.images
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
        pooled = network(pixels).pooled
        if pooled is None:
            raise InputError(f"the {name} returns no features: its Output has no `pooled`")
        parts.append(pooled.float().cpu())
    return torch.cat(parts).numpy()
