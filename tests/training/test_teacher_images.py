"""A teacher sees images as it was trained on them: normalised, sized and cropped its own way."""

import json
import shutil

import pytest
import torch
from conftest import image_set, picture
from helpers import quiet, teacher, tiny, tiny_run
from safetensors.torch import save_file
from torch.testing import assert_close

from kdnb import InputError, Run, analysis, create_model, train
from kdnb.data.loader import Loader
from kdnb.models import read_metadata, read_state_dict
from kdnb.paths import data_folder, project_root
from kdnb.training.setup import build_setup, load_images, loaders
from kdnb.training.teacher import load_teacher
from kdnb.training.teacher_images import teacher_images

LITE = "efficientnet_lite0_imagenet.safetensors"
LITE_FILE = project_root().parent / "shared" / "weights" / LITE
VIT = "timm/vit_tiny_patch16_224"
OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_size": 8, "crop": 0.9}


def save(path, network, classes, image_size=0, metadata=None):
    """Save random weights; metadata: None for a file without any."""
    torch.manual_seed(0)
    state = create_model(network, classes, image_size).state_dict()
    save_file(state, path, metadata and {"kdnb": json.dumps(metadata)})
    return str(path)


@pytest.fixture
def photographs(tmp_path):
    """A folder of two classes of small photographs."""
    for split, n in {"train": 8, "test": 2}.items():
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                picture(40, 30, seed=i).save(folder / f"{i}.png")
    return str(tmp_path / "photos")


def test_a_file_says_how_its_network_was_trained(tmp_path):
    path = save(tmp_path / "own.safetensors", "wrn_16_1", 4, metadata=OWN | {"dataset": "x"})
    run = tiny_run(tmp_path, teacher_weights=path, epochs=1)
    lines = []
    train(run, lines.append)
    seen = run.config["teacher"]["images"]
    assert seen == OWN | {"source": "its weights file"}
    assert "it sees images of 8 x 8 pixels, mean (0.1, 0.2, 0.3)" in lines[0]
    setup = build_setup(run)
    batch = setup.train.take([3, 4, 5])
    images, _ = load_images(run)
    mean, std = (torch.tensor(OWN[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    own = torch.tensor(images.mean).view(1, 3, 1, 1), torch.tensor(images.std).view(1, 3, 1, 1)
    pixels = (batch.images * own[1] + own[0]) * 255
    torch.testing.assert_close((batch.teacher_images * std + mean) * 255, pixels)
    losses, _ = setup.distiller(*batch)
    wrong, _ = setup.distiller(*batch[:3])
    assert losses["kd"] != wrong["kd"] and "sees" in analysis.teacher_table(run).index


def test_the_accuracy_of_a_teacher_names_its_source_and_precision(tmp_path, teacher):
    """It is not measured again: the weights in a file may have been rounded since."""
    run = tiny_run(tmp_path, teacher_weights=teacher)
    metadata = {"kdnb": json.dumps(read_metadata(teacher) | {"top1": 34.0})}
    half = {key: value.half() for key, value in read_state_dict(teacher).items()}
    save_file(half, tmp_path / "half.safetensors", metadata)
    rounded = tiny_run(tmp_path, teacher_weights=str(tmp_path / "half.safetensors"))
    sources = [analysis.teacher_table(r).loc["top-1 (%)", "value"] for r in (run, rounded)]
    assert sources[0].endswith(", as its file says, whose weights are float32")
    assert sources[1] == "34, as its file says, whose weights are float16"


def test_a_teacher_with_the_data_sets_images_costs_nothing(tmp_path, teacher):
    run = tiny_run(tmp_path, teacher_weights=teacher)
    assert build_setup(run).train.take([0]).teacher_images is None
    same = tiny_run(tmp_path, teacher_weights=teacher, teacher_size=8)
    assert same == run and same.name == run.name
    assert tiny_run(tmp_path, teacher_weights=teacher, teacher_size=16) != run
    assert "sees" not in analysis.teacher_table(run).index


@pytest.mark.parametrize("compile", ["off", "auto"])
def test_a_run_with_a_larger_teacher_ends_and_is_analysed(tmp_path, teacher, compile):
    run = tiny_run(
        tmp_path, teacher_weights=teacher, teacher_size=16, epochs=1, compile=compile, method="afd"
    )
    train(run, quiet)
    assert run.config["teacher"]["images"]["image_size"] == 16
    networks = analysis.load_run(run)
    batch = networks.loader.take([0, 1])
    assert batch.teacher_images.shape[2:] == (16, 16) and batch.images.shape[2:] == (8, 8)
    expected = networks.models["teacher"](batch.teacher_images).logits
    assert torch.equal(networks.outputs(batch)["teacher"].logits, expected)
    survey = analysis.survey_images(networks)
    # Of a larger batch, whose last bits may differ.
    assert_close(torch.from_numpy(survey.predictions.logits["teacher"][:2]), expected)
    assert networks.blocks[0][0].shape[1:] == (16, 16)
    assert run.history["teacher.shapes"][0, 1] == 16


def test_photographs_are_cut_anew_in_the_teachers_size(photographs, cache_folder):
    fields = {"teacher": "resnet18", "image_size": 16, "teacher_size": 32, "batch_size": 4}
    run = Run(dataset="folder", data_root=photographs, teacher_weights="none", **fields)
    images = load_images(run)
    assert images[1].size == run.preset.stored(32)  # the teacher's images would be blurred else
    assert run.teacher_run.image_size == 32
    loader, _ = loaders(run, images, teacher_images(run, images[0]))
    large = Loader(images[0], 4, 32, train=True, seed=run.seed, flip=run.preset.flip)
    made = loader.take([0, 1])
    assert made.images.shape[2:] == (16, 16)
    assert torch.equal(made.teacher_images, large.take([0, 1]).images.to(made.images.dtype))


def test_other_images_are_resized_and_flipped_alike():
    images = image_set(64)
    options = {"train": True, "padding": 1, "flip": True, "teacher_size": 16}
    loader = Loader(images, 64, 8, **options)
    batch = next(loader.epoch())
    resized = torch.nn.functional.interpolate(batch.images, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(batch.teacher_images, resized, atol=1e-4, rtol=1e-4)


def test_a_network_with_fixed_positions_gets_the_size_of_its_weights(tmp_path):
    sees = {}
    for name, metadata in {"plain": None, "small": OWN | {"image_size": 32}}.items():
        size = metadata["image_size"] if metadata else 0
        path = save(tmp_path / f"{name}.safetensors", VIT, 4, size, metadata)
        run = tiny_run(tmp_path, teacher=VIT, teacher_weights=path)
        sees[name] = teacher_images(run, load_images(run)[0])
        assert load_teacher(run).model.patch_embed.img_size == (sees[name].image_size,) * 2
    assert sees["plain"].image_size == 224 and sees["plain"].mean == (0.5, 0.5, 0.5)
    assert sees["plain"].source == "timm" and sees["small"].image_size == 32
    trained_first = tiny_run(tmp_path, teacher=VIT, teacher_weights="none", teacher_size=16)
    assert trained_first.teacher_run.image_size == 16


def test_a_teacher_without_classifier_teaches_features_alone(tmp_path):
    path = save(tmp_path / "dino.safetensors", "timm/tf_efficientnet_lite0", 0)
    fields = {"teacher": "timm/tf_efficientnet_lite0", "teacher_weights": path, "epochs": 1}
    fields |= {"teacher_size": 32}
    lines = []
    run = train(tiny_run(tmp_path, **fields), lines.append)  # afd, a named method
    assert run.config["left_out"] == ["kd"] and any(line.startswith("left out") for line in lines)
    assert analysis.teacher_table(run).loc["top-1 (%)", "value"] == "it has no classifier"
    with pytest.raises(
        InputError, match=r"kd compares predictions, and this teacher .*no classifier"
    ):
        build_setup(tiny_run(tmp_path, **fields, method="kd"))


def test_a_network_without_maps_teaches_predictions_alone(tmp_path, monkeypatch):
    path = save(tmp_path / "w.safetensors", VIT, 4, 32, OWN | {"image_size": 32})
    run = tiny_run(tmp_path, teacher=VIT, teacher_weights=path, method="kd")
    teacher = load_teacher(run)
    teacher.model.block_names = []  # as of a network without `forward_intermediates`
    setup = build_setup(run, teacher=teacher)
    assert setup.distiller(*setup.train.take([0, 1]))[0]["kd"].isfinite()
    with pytest.raises(InputError, match="at compares features, and this teacher returns no"):
        build_setup(
            tiny_run(tmp_path, teacher=VIT, teacher_weights=path, method="at"), None, teacher
        )


@pytest.mark.skipif(not LITE_FILE.is_file(), reason=f"{LITE} is not there")
def test_an_efficientnet_of_timm_names_instruments(tmp_path, cache_folder):
    source = data_folder() / "stanford40" / "JPEGImages"
    if not source.is_dir():
        pytest.skip("Stanford40 is not there")
    for split in ("train", "test"):
        for number in ("195", "226", "219", "044"):
            name = f"playing_guitar_{number}.jpg"
            (tmp_path / split / "playing_guitar").mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, tmp_path / split / "playing_guitar" / name)
    run = Run(
        dataset="folder",
        data_root=str(tmp_path),
        teacher="timm/tf_efficientnet_lite0",
        teacher_weights=str(LITE_FILE),
        student_weights="none",
        image_size=224,
        method="ce + afd:200",
        batch_size=4,
    )
    setup = build_setup(run)
    sees = setup.teacher_images
    assert sees.mean == sees.std == (0.5, 0.5, 0.5) and sees.source == "timm"
    batch = next(Loader(setup.test.images, 4, 224, **sees.loader_options).epoch())
    teacher = setup.distiller.teacher
    guitars = torch.tensor([402, 420, 546])  # acoustic guitar, banjo, electric guitar
    own, other = (teacher(images).logits.argmax(1) for images in (batch.for_teacher, batch.images))
    assert torch.isin(own, guitars).all() and not torch.isin(other, guitars).any()
