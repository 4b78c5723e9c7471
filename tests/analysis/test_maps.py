"""Grad-CAM, against values that can be computed by hand."""

import numpy as np
import torch.nn.functional as F
from test_analysis import networks

from kdnb import analysis
from kdnb.analysis.maps import grad_cam


def test_grad_cam_is_of_the_last_block_that_shows_a_place(networks):
    survey = analysis.survey_images(networks)
    gallery = grad_cam(networks, survey, np.array([4, 9]))
    (cam,) = gallery.maps["distilled"]
    assert cam.shape == (2, 4, 4) and (cam >= 0).all()  # the last block's maps are 2 x 2
    assert gallery.blocks == ([networks.blocks[0][3]], [networks.blocks[1][1]])
    assert gallery.quantity == "Grad-CAM"
    assert grad_cam(networks, survey, np.array([], int)) is None


def test_grad_cam_of_a_linear_classifier_weighs_channels_by_the_weights_of_the_class(networks):
    survey = analysis.survey_images(networks)
    blocks = tuple([(name, (1, 4, 4)) for name, _ in blocks] for blocks in networks.blocks)
    gallery = grad_cam(networks._replace(blocks=blocks), survey, np.array([4, 9]))
    (cam,) = gallery.maps["distilled"]
    model = networks.models["distilled"]
    output = model(networks.loader.take([4, 9]).images)
    weights = model.fc.weight[output.logits.argmax(1)][:, :, None, None]
    expected = (weights * output.feats[-1]).sum(1).relu().flatten(1)
    expected = F.normalize(expected, dim=1).detach().numpy()
    np.testing.assert_allclose(cam.reshape(2, -1), expected, atol=1e-4)
