"""What losses may ask for: classifiers, the batch size, gradients, several teachers, and a say in
how the student predicts."""

import json

import pytest
import torch
from helpers import quiet, teacher, tiny, tiny_run
from safetensors.torch import load_file, save_file
from torch import nn

import kdnb
from kdnb import InputError, analysis, create_model, train
from kdnb.losses import LOSSES, METHODS, Loss
from kdnb.training.distiller import Distiller
from kdnb.training.evaluation import evaluate
from kdnb.training.loss_terms import Teachers
from kdnb.training.setup import load_images, loaders

CLASSES = 4


@pytest.fixture
def define(monkeypatch):
    """Defines losses that are forgotten after the test."""
    monkeypatch.setattr("kdnb.losses.base.LOSSES", LOSSES)
    before = dict(LOSSES), dict(METHODS)
    yield
    for table, saved in zip((LOSSES, METHODS), before, strict=True):
        table.clear()
        table.update(saved)


def networks(*names):
    torch.manual_seed(0)
    return [create_model(name, CLASSES) for name in names]


def distiller(method, *teachers, **options):
    student, *teachers = networks("wrn_10_1", *(teachers or ["wrn_16_1"]))
    teacher = teachers[0] if len(teachers) == 1 else Teachers(teachers)
    return Distiller(student, teacher, method, torch.randn(4, 3, 8, 8), **options)


def batch(n=4):
    torch.manual_seed(1)
    return torch.randn(n, 3, 8, 8), torch.arange(n) % CLASSES, torch.arange(n)


def test_a_loss_gets_the_classifiers_of_both_networks(define):
    class Weights(Loss, name="weights_of_both"):
        needs_classifiers = True

        def setup(self, labels):
            self.known = self.classifiers  # they are there before

        def forward(self, student, teacher, batch):
            return (
                (self.classifiers.student.weight - self.classifiers.teacher.weight).square().sum()
            )

    student_and_teacher = distiller("weights_of_both", labels=torch.arange(CLASSES))
    terms, _ = student_and_teacher(*batch())
    terms["total"].backward()
    assert student_and_teacher.student.fc.weight.grad.abs().sum() > 0
    assert student_and_teacher.teacher.fc.weight.grad is None
    (loss,) = student_and_teacher.losses.values()
    assert not loss.state_dict() and loss.known == loss.classifiers


def test_a_loss_gets_the_batch_size(define):
    class Wide(Loss, name="wide"):
        needs_batch_size = True

        def __init__(self, student, teacher, batch_size, *, factor: int = 2):
            super().__init__()
            self.layer = nn.Linear(batch_size, factor)

        def forward(self, student, teacher, batch):
            return self.layer.weight.square().sum()

    assert distiller("wide(factor=3)", batch_size=7).losses["wide"].layer.weight.shape == (3, 7)


def test_a_loss_may_take_gradients_of_the_teacher(define):
    class Attribution(Loss, name="attribution"):
        teacher_grad = True

        def forward(self, student, teacher, batch):
            (gradient,) = torch.autograd.grad(teacher.logits.max(1).values.sum(), teacher.feats[-1])
            return gradient.square().sum() * student.logits.square().mean()

    student_and_teacher = distiller("attribution")
    terms, _ = student_and_teacher(*batch())
    terms["total"].backward()
    assert terms["attribution"] > 0
    assert all(p.grad is None for p in student_and_teacher.teacher.parameters())


def test_losses_add_up_over_several_teachers():
    """Each teacher has an instance of the loss, with its own weights and running means."""
    both = distiller("ce + afd:200", "wrn_16_1", "wrn_10_2").train()
    terms, _ = both(*batch())
    expected = 0
    for network, loss in zip(both.teacher, both.losses["afd"], strict=True):
        one = loss(both.student(batch()[0]), network(batch()[0]), None)
        expected += one.item()
    assert terms["afd"].item() == pytest.approx(expected, rel=1e-5)
    assert both.means().keys() == {"afd.0.links", "afd.1.links"}


def test_kd_takes_the_mean_of_the_teachers_predictions():
    both = distiller("kd(ensemble=True, T=2)", "wrn_16_1", "wrn_10_2")
    terms, logits = both(*batch())
    predictions = [(teacher(batch()[0]).logits / 2).softmax(1) for teacher in both.teacher]
    target = sum(predictions) / 2
    log_p = (logits / 2).log_softmax(1)
    expected = (target * (target.log() - log_p)).sum(1).mean() * 4
    assert terms["kd"].item() == pytest.approx(expected.item(), rel=1e-5)
    one = distiller("kd(ensemble=True)")
    alone = distiller("kd:1")
    torch.testing.assert_close(one(*batch())[0]["kd"], alone(*batch())[0]["kd"])


@pytest.fixture
def shifted(define):
    """A loss by which the student predicts what the teacher's classifier says of its features."""

    class Shifted(Loss, name="shifted", method="ce + shifted:0.5"):
        needs_classifiers = True
        same_classes = True

        def __init__(self, student, teacher, *, scale: float = 2.0):
            super().__init__()
            self.scale = scale
            self.project = nn.Linear(student.pooled.shape[1], teacher.pooled.shape[1])

        def predict(self, student):
            pooled = self.project(student.pooled)
            logits = self.classifiers.teacher(pooled) * self.scale
            return student._replace(logits=logits, pooled=pooled)

        def forward(self, student, teacher, batch):
            return (student.pooled - teacher.pooled).square().mean()

    return Shifted


def test_a_loss_may_say_how_the_student_predicts(shifted):
    student_and_teacher = distiller("shifted")
    _, logits = student_and_teacher(*batch())
    own = student_and_teacher.student(batch()[0])
    loss = student_and_teacher.losses["shifted"]
    torch.testing.assert_close(logits, loss.predict(own).logits)
    assert not torch.allclose(logits, own.logits)
    torch.testing.assert_close(student_and_teacher.model(batch()[0]).logits, logits)


def test_such_a_student_is_tested_saved_and_loaded_so(shifted, teacher, tmp_path):
    run = train(tiny_run(tmp_path, method="shifted", teacher_weights=teacher), quiet)
    loaded = kdnb.load(run.weights)
    assert type(loaded.network).__name__ == "Predicting"
    _, test = loaders(run, load_images(run))
    assert evaluate(loaded.network, test)["top1"] == pytest.approx(run.result["top1"])
    with pytest.raises(InputError, match=r"does not predict by its network alone: load it by"):
        kdnb.load_weights(run.student, run.weights)


def test_only_one_loss_may_change_how_the_student_predicts(shifted):
    class Second(shifted, name="second"):
        pass

    with pytest.raises(InputError, match="both change how the student predicts: choose one"):
        distiller("shifted + second")


def test_a_run_has_several_teachers(teacher, tmp_path):
    two = {"teacher": "wrn_16_1, WRN-16-1", "teacher_weights": f"{teacher}, {teacher}"}
    run = train(tiny_run(tmp_path, epochs=2, **two), quiet)
    one = train(tiny_run(tmp_path, epochs=2, teacher_weights=teacher), quiet)
    assert run.config["teacher"]["network"] == "wrn_16_1,wrn_16_1"
    # The sum of two equal losses, but for AFD's random weights.
    first = (each.metrics["train_kd"][0] for each in (run, one))
    assert next(first) == pytest.approx(2 * next(first), rel=0.05)
    assert run.history["afd.1.links"].shape == (2, *one.history["afd.links"].shape[1:])
    assert run.links_by_epoch is None and one.links_by_epoch is not None
    assert tiny_run(tmp_path, epochs=2, **two).done
    with pytest.raises(InputError, match=r"has several teachers: choose a run with one"):
        analysis.load_run(run)


@pytest.mark.parametrize("weights", ["", "none", "{0}", "{0}, none"])
def test_several_teachers_need_weights_each(teacher, tmp_path, weights):
    with pytest.raises(InputError, match=r"each of the 2 teachers \(wrn_16_1, wrn_16_2\) needs"):
        tiny_run(tmp_path, teacher="wrn_16_1,wrn_16_2", teacher_weights=weights.format(teacher))


def test_several_teachers_get_the_same_images(teacher, tmp_path):
    other = tmp_path / "other.safetensors"
    about = kdnb.models.read_metadata(teacher) | {"mean": [0.1, 0.2, 0.3]}
    save_file(load_file(teacher), other, {"kdnb": json.dumps(about)})
    run = tiny_run(tmp_path, teacher="wrn_16_1,wrn_16_1", teacher_weights=f"{teacher},{other}")
    with pytest.raises(InputError, match="several teachers get the same images, and these were"):
        train(run, quiet)
