"""Networks of finished runs are loaded as training left them."""

import pytest
import torch
from conftest import picture
from helpers import quiet, tiny, tiny_run

from kdnb import InputError, analysis
from kdnb.models import read_state_dict
from kdnb.runs.run import Run
from kdnb.training.evaluation import evaluate
from kdnb.training.train import train

NETWORKS = {"teacher": "wrn_10_1", "student": "wrn_10_1"}
SHORT = {"epochs": 1, "teacher_epochs": 1}
CPU = {"device": "cpu", "precision": "float32", "compile": "off"}


def test_finished_runs_are_loaded_as_training_left_them(tmp_path):
    small = {"batch_size": 32, "train_limit": 96, "outputs": str(tmp_path)}
    run = Run(method="ce + afd:20(qk_dim=8)", **NETWORKS, **SHORT, **CPU, **small)
    networks = analysis.load_run(run)  # trains what is missing
    for role, finished in (("distilled", run), ("baseline", run.baseline)):
        top1 = evaluate(networks.models[role], networks.loader)["top1"]
        assert top1 == pytest.approx(finished.result["top1"], abs=1e-4)
    assert networks.links_by_epoch.shape == (1, 3, 3) and networks.same_classes
    trained = read_state_dict(run.loss_weights)
    afd = networks.link_loss
    assert torch.equal(afd.p_t, trained["afd.p_t"]) and not afd.training
    for name in ("", run.name):
        opened = analysis.run_from_notebook({"outputs": str(tmp_path), "run": name})
        assert opened == run and opened.folder == run.folder
    run.loss_weights.unlink()
    with pytest.raises(InputError, match="losses"):
        analysis.load_run(run)


def test_a_run_is_loaded_without_its_initial_weights(tmp_path):
    small = {"epochs": 1, "image_size": 8, "outputs": str(tmp_path), "student": "wrn_10_1"}
    first = train(Run(method="none", **small, **CPU))
    more = {"teacher": "wrn_10_1", "teacher_epochs": 1, "student_weights": str(first.folder)}
    run = train(Run(method="ce + afd:9", **more, **small, **CPU))
    assert run.student_weights == str(first.weights)
    assert run.baseline.student_weights_hash == run.student_weights_hash != ""
    train(run.baseline)
    first.weights.unlink()
    networks = analysis.load_run(Run.open(run.folder))
    names = {name.removeprefix("afd.") for name in read_state_dict(run.loss_weights)}
    assert networks.link_loss.state_dict().keys() == names
    for model in networks.models.values():
        assert not any(weight.requires_grad for weight in model.parameters())


def test_a_run_without_afd_is_rejected_before_anything_is_trained(tmp_path):
    with pytest.raises(
        InputError, match="'kd' has no attention between blocks, so nothing is linked: choose"
    ):
        analysis.load_run(Run(method="kd", outputs=str(tmp_path)))
    assert analysis.run_from_notebook({"outputs": str(tmp_path)}) == Run(outputs=str(tmp_path))
    assert not any(tmp_path.iterdir())


def test_a_photograph_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"photograph 'none.png': no such file"):
        analysis.run_from_notebook({"photograph": "none.png", "outputs": str(tmp_path), "In": []})


def test_a_run_whose_images_were_moved_says_what_to_set(tmp_path, cache_folder):
    for split, n in (("train", 50), ("test", 2)):  # as many as a batch of the teacher has
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                picture(40, 30, seed=i + 10 * len(label)).save(folder / f"{i}.png")
    where = {"data_root": str(tmp_path / "photos"), "outputs": str(tmp_path / "out")}
    small = {"dataset": "folder", "batch_size": 20, "image_size": 32, "teacher_weights": "none"}
    run = train(Run(**small, **NETWORKS, **SHORT, **CPU, **where))
    (tmp_path / "photos").rename(tmp_path / "moved")
    opened = analysis.run_from_notebook({"run": run.name, "outputs": where["outputs"], "In": []})
    with pytest.raises(InputError, match="has to contain the folder train"):
        analysis.load_run(opened)
    where["data_root"] = str(tmp_path / "moved")
    opened = analysis.run_from_notebook({"run": run.name, **where, "In": []})
    assert len(analysis.load_run(opened).loader.images) == 4


def test_finished_runs_are_analysed_with_the_threads_that_are_asked_for(tmp_path):
    fixed = {"student": "wrn_10_1", "teacher": "wrn_10_1", "epochs": 1, "teacher_epochs": 1}
    trained = train(tiny_run(tmp_path, threads=1, **fixed), quiet)
    run = Run.open(trained.folder, threads=2)
    for load in (
        analysis.teacher_table,
        lambda run: analysis.load_networks({"afd": run}),
        analysis.load_run,
    ):
        torch.set_num_threads(1)
        load(run)
        assert torch.get_num_threads() == 2
