"""Exported networks equal PyTorch's; `python -m kdnb.export`."""

import logging

import pytest
import torch
from helpers import quiet, tiny, tiny_run

from kdnb import InputError, create_model, load, train
from kdnb import export as command
from kdnb.deploy import FORMATS, Classifier, export
from kdnb.deploy.formats import check_exported, open_exported
from kdnb.models import Preprocessing
from kdnb.progress import percent

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
FAMILIES = {"wrn_10_1": 8, "resnet8": 16, "cifar_vgg8": 32, "cifar_mobilenetv2": 32}
FAMILIES |= {"mobilenet_v3_small": 32}  # traced by torch.fx
LARGE = ("cifar_mobilenetv2", "mobilenet_v3_small")


def classifier_of(network):
    preprocessing = Preprocessing(MEAN, STD, FAMILIES.get(network, 32))
    model = create_model(network, 4)
    model.train()(torch.randn(8, 3, preprocessing.image_size, preprocessing.image_size))
    classes = [f"class {i}" for i in range(4)]
    metadata = {"network": network, "classes": classes} | preprocessing._asdict()
    return Classifier(model, classes, preprocessing, metadata).eval()


def normalised(classifier, n):
    size = classifier.preprocessing.image_size
    return classifier.transform(torch.randint(256, (n, 3, size, size), dtype=torch.uint8))


@pytest.mark.parametrize("to", ["onnx", "pt2"])
@pytest.mark.parametrize(
    "network", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in FAMILIES]
)
def test_an_exported_network_equals_the_original(network, to, tmp_path):
    classifier = classifier_of(network)
    exported = export(classifier, tmp_path / f"net{FORMATS[to]}", to)
    assert exported.metadata["classes"] == classifier.classes
    for n in (1, 5):  # the batch size is free
        check = check_exported(exported, classifier, [(normalised(classifier, n), torch.zeros(n))])
        assert check.images == n and check.agreement == 100 and check.difference < 1e-4


@pytest.mark.parametrize("to", FORMATS)
def test_the_normalisation_may_be_a_part_of_the_graph(to, tmp_path):
    classifier = classifier_of("wrn_10_1")
    path = tmp_path / f"net{FORMATS[to]}"
    export(classifier, path, to, input="uint8")
    exported = open_exported(path)
    pixels = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = classifier(classifier.transform(pixels))
    torch.testing.assert_close(exported.run(pixels), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        exported(classifier.transform(pixels)), expected, atol=1e-4, rtol=1e-4
    )
    assert exported.metadata["input"] == "uint8" and exported.metadata["mean"] == list(MEAN)


class Unexportable(torch.nn.Module):
    def forward(self, images):
        raise RuntimeError("no way\nsecond line")


@pytest.mark.parametrize("to", FORMATS)
def test_a_network_that_cannot_be_exported_leaves_no_file(to, tmp_path):
    classifier = classifier_of("wrn_10_1")
    classifier.network = Unexportable()
    with pytest.raises(InputError, match=f"wrn_10_1 cannot be exported to {to}: "):
        export(classifier, tmp_path / "net", to)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("kdnb.deploy.formats.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "kdnb\[deploy\]"'):
        export(classifier_of("wrn_10_1"), tmp_path / "net.onnx")


def test_the_command_checks_and_quantises(tiny, tmp_path, capsys):
    run = train(tiny_run(tmp_path, method="none"), quiet)
    assert command.main([str(run.folder), "--int8"]) == 0
    out = capsys.readouterr().out
    assert "student.onnx: 0." in out and "student.int8.onnx: 0." in out
    images = run.result["test_images"]
    assert f"{percent(100, images)} % of {images} test images" in out
    assert f"PyTorch in float32 {percent(run.result['top1'], images)} %" in out
    small, large = (run.folder / f"student{kind}.onnx" for kind in (".int8", ""))
    assert small.stat().st_size < large.stat().st_size
    assert open_exported(small).metadata["run"] == run.name
    assert not logging.root.manager.disable
    with pytest.raises(SystemExit):
        command.main([str(run.folder), "--to", "pt2", "--int8"])
    assert "--int8 is --to onnx alone" in capsys.readouterr().err
