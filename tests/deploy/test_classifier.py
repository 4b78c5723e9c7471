"""`kdnb.load`: a network that can be used without training code; `python -m kdnb.predict`."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_set, picture
from helpers import edit, quiet, tiny, tiny_run
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import v2

import kdnb
from kdnb import InputError, Run, load, predict, train
from kdnb.data import DATASETS
from kdnb.data.crops import TEST_CROP
from kdnb.data.photographs import IMAGENET_STATS
from kdnb.models import Preprocessing, read_metadata
from kdnb.training.setup import build_setup

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {"torch", "torchvision", "numpy", "safetensors", "PIL", "lazy_loader"}
BLOCKED = ["pandas", "scipy", "sklearn", "tqdm", "psutil", "filelock", "tabulate", "dask"]
BLOCKED += ["distributed", "matplotlib", "seaborn", "IPython", "ipywidgets", "papermill", "onnx"]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return train(tiny_run(tmp_path_factory.mktemp("run"), method="none"), quiet)


@pytest.fixture
def photographs(tmp_path):
    """A folder of files as people have them."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    picture(40, 30, 0).save(folder / "wide.jpg")
    picture(30, 50, 1, "L").save(folder / "more/grey.PNG")
    picture(30, 50, 2, "P").save(folder / "palette.png")
    picture(30, 50, 3, "CMYK").save(folder / "cmyk.jpg")
    picture(30, 50, 4).convert("RGBA").save(folder / "transparent.webp")
    (folder / "notes.txt").write_text("not an image")
    (folder / "._wide.jpg").write_text("macOS")
    return folder


def test_the_network_of_a_run_has_the_accuracy_that_its_file_says(run):
    classifier = load(run.folder)
    _, test = DATASETS["tiny"].load(None, 8)
    with torch.no_grad():
        logits = classifier(classifier.transform(test.images))
    assert not classifier.training
    assert classifier.classes == list(test.classes)
    top1 = 100 * (logits.argmax(1) == test.labels).float().mean().item()
    assert top1 == pytest.approx(run.result["top1"]) == pytest.approx(classifier.metadata["top1"])


def test_a_transformed_test_image_is_that_of_the_loader(run):
    classifier = load(run.weights)
    images = DATASETS["tiny"].load(None, 8)[1].images
    batch = next(build_setup(run).test.epoch()).images
    torch.testing.assert_close(classifier.transform(images), batch[: len(images)])
    as_pil = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    torch.testing.assert_close(classifier.transform(as_pil), batch[0])


def test_a_weights_file_says_all_that_is_needed(run):
    metadata = read_metadata(run.weights)
    expected = {"network": "wrn_10_1", "dataset": "tiny", "method": "none", "teacher": ""}
    expected |= {"mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 8, "crop": 1.0}
    expected |= {"run": run.name, "commit": run.config["machines"][-1]["commit"]}
    assert expected.items() <= metadata.items()
    assert len(metadata["classes"]) == 4


def test_photographs_are_cropped_like_test_photographs(run, tmp_path, monkeypatch):
    def load_photographs(root, size, **_):
        aspect = torch.full((70,), 1.5)
        return image_set(70, 10, aspect=aspect), image_set(40, 10, aspect=aspect[:40])

    other = DATASETS["tiny"]._replace(load=load_photographs)
    monkeypatch.setitem(DATASETS, "tiny", other)
    trained = train(tiny_run(tmp_path, method="none", epochs=1), quiet)
    assert load(trained.folder).preprocessing.crop == TEST_CROP

    classifier = load(run.folder, preprocessing=Preprocessing(*IMAGENET_STATS, 112, TEST_CROP))
    photograph = picture(360, 240, 0)
    centre = v2.functional.center_crop(photograph, 210)  # 7/8 of the shorter side
    expected = v2.functional.pil_to_tensor(v2.functional.resize(centre, [112, 112]))
    mean, std = torch.tensor(IMAGENET_STATS)[..., None, None]
    pixels = (classifier.transform(photograph) * std + mean) * 255
    assert (pixels - expected).abs().mean() < 2


def test_a_classifier_can_be_pickled(run):
    classifier = load(run.folder)
    images = torch.rand(2, 3, 8, 8)
    copy = pickle.loads(pickle.dumps(classifier))
    assert torch.equal(copy(images), classifier(images))
    assert copy.classes == classifier.classes and copy.preprocessing == classifier.preprocessing


def test_predictions_are_a_table_with_a_row_per_image_and_rank(run, photographs):
    classifier = load(run.folder)
    table = classifier.predict(photographs, top=3)
    names = ["cmyk.jpg", "grey.PNG", "palette.png", "transparent.webp", "wide.jpg"]
    assert [Path(path).name for path in table["image"]] == [n for n in names for _ in range(3)]
    assert list(table["rank"]) == [1, 2, 3] * 5
    assert (np.diff(table["probability"].to_numpy().reshape(5, 3)) <= 0).all()
    with Image.open(photographs / "wide.jpg") as image:
        alone = classifier.predict([image], top=9)
    wide = table[table["image"].str.endswith("wide.jpg")]
    assert list(alone["class"][:3]) == list(wide["class"])
    assert len(alone) == 4  # there are no more classes
    assert alone["probability"].sum() == pytest.approx(1)


def test_a_damaged_photograph_is_named_or_left_out(run, photographs, capsys):
    (photographs / "empty.jpg").touch()
    classifier = load(run.folder)
    with pytest.raises(InputError, match=r"1 of 6 files cannot be decoded .*empty.jpg"):
        classifier.predict(photographs)
    assert len(classifier.predict(photographs, top=1, skip_damaged=True)) == 5
    assert "left out: 1 of 6" in capsys.readouterr().out


def test_the_command_prints_a_table_or_csv(run, photographs, capsys):
    assert (
        predict.main([str(run.folder), str(photographs / "wide.jpg"), "--csv", "--top", "1"]) == 0
    )
    header, row = capsys.readouterr().out.splitlines()
    assert header == "image,rank,class,probability" and "wide.jpg,1,class " in row
    predict.main([str(run.folder), str(photographs), "--device", "cpu"])
    assert capsys.readouterr().out.count("wide.jpg") == 4
    with pytest.raises(SystemExit):
        predict.main([str(run.folder), str(photographs / "missing.jpg")])
    assert "no such file or folder" in capsys.readouterr().err


def old_file(path, run):
    """A weights file as it was before it said how images are prepared."""
    metadata = read_metadata(run.weights)
    names = ("network", "dataset", "classes", "top1", "overrides", "method")
    old = {name: metadata[name] for name in names}
    save_file(load_file(run.weights), path, {"kdnb": json.dumps(old)})
    return path


def test_an_older_file_is_completed_from_its_run_and_its_data_set(tmp_path):
    fields = {"student": "wrn_10_1", "image_size": 8, "epochs": 1, "outputs": str(tmp_path)}
    run = train(Run(dataset="digits", method="none", **fields), quiet)
    complete = load(run.weights).metadata
    alone = load(old_file(tmp_path / "alone.safetensors", run))
    assert alone.preprocessing == Preprocessing.from_metadata(complete)
    old_file(run.weights, run)
    edit(run.folder / "config.json")  # older runs have no digests of their files
    assert load(run.folder).metadata == complete
    # The teacher that comes with the study.
    short = load(ROOT / "outputs/teachers/wrn_40_2-cifar100.safetensors")
    assert short.preprocessing == Preprocessing(*kdnb.data.cifar100.STATS, 32, 1.0)


def test_what_an_older_file_does_not_say_is_asked_for(run, tmp_path):
    path = old_file(tmp_path / "old.safetensors", run)
    with pytest.raises(InputError, match="nothing is known of the data set 'tiny'"):
        load(path)
    given = Preprocessing((0.1,) * 3, (0.2,) * 3, 8)
    assert load(path, preprocessing=given).preprocessing == given


def test_bad_input_gets_a_sentence(run, tmp_path):
    with pytest.raises(InputError, match="neither a weights file nor a run"):
        load(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no student.safetensors: the run has not written it"):
        load(tmp_path)
    record = next((ROOT / "outputs/records").iterdir())
    with pytest.raises(InputError, match="the run is finished, but did not keep it"):
        load(record)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not name its network"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="top is 0"):
        load(run.weights).predict(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), top=0)


def test_importing_it_needs_six_packages_alone():
    code = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED})); import kdnb.deploy; "
    code += "print(*[n for n in sys.modules if n.startswith(('kdnb.training', 'kdnb.data'))])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
