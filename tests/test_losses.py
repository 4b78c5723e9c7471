import pytest
import torch
import torch.nn.functional as F

from kdnb.distill import Distiller
from kdnb.errors import InputError
from kdnb.losses import AFD, LOSSES, Statistics, evenly, kd_loss
from kdnb.models import Output, create_model


def test_kd_is_the_kl_divergence_of_the_softened_answers():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    p, q = F.softmax(teacher / 3, 1), F.softmax(student / 3, 1)
    expected = (p * (p / q).log()).sum(1).mean() * 9
    assert torch.allclose(kd_loss(student, teacher, temperature=3), expected, rtol=1e-5)
    assert abs(float(kd_loss(teacher, teacher))) < 1e-6


def test_attention_rows_sum_to_one(pair):
    a = AFD(*pair, qk_dim=8).attention(*pair)
    assert a.shape == (6, len(pair[1].feats), len(pair[0].feats))
    assert torch.allclose(a.sum(2), torch.ones(6, len(pair[1].feats)))


def test_distances_are_those_of_the_equation(pair):
    """One product per map size gives what the paper's double sum does, for maps of the same and of other sizes."""
    student, teacher = pair
    distances = AFD(student, teacher).distances(student, teacher)
    for t, h_t in enumerate(teacher.feats):
        m_t = F.normalize(h_t.square().mean(1).flatten(1), dim=1)
        for s, h_s in enumerate(student.feats):
            m_s = F.normalize(F.adaptive_avg_pool2d(h_s.square().mean(1), h_t.shape[2:]).flatten(1), dim=1)
            assert torch.allclose(distances[:, t, s], (m_s - m_t).square().mean(1), rtol=1e-4, atol=1e-7)


def test_statistics_have_the_gradients_of_their_definition():
    feat = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, 5), torch.randn(2, 3)
    energies, averages = Statistics.apply(feat)
    assert torch.allclose(energies.double(), feat.square().mean(1), rtol=1e-5)
    assert torch.allclose(averages.double(), feat.mean((2, 3)), rtol=1e-4, atol=1e-6)
    own = torch.autograd.grad((energies * weights[0]).sum() + (averages * weights[1]).sum(), feat)[0]
    plain = (feat.square().mean(1) * weights[0]).sum() + (feat.mean((2, 3)) * weights[1]).sum()
    assert torch.allclose(own, torch.autograd.grad(plain, feat)[0], rtol=1e-4, atol=1e-6)


def test_dead_maps_have_finite_losses_and_gradients(pair):
    student, teacher = pair
    feats = tuple(torch.zeros_like(f).requires_grad_() for f in student.feats)
    dead = Output(student.logits, feats)
    loss = AFD(student, teacher)(dead, teacher)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(f.grad).all() for f in feats)


def test_links_are_the_mean_attention_since_they_were_zeroed(pair):
    afd = AFD(*pair).train()
    seen = []
    for _ in range(3):
        seen.append(afd.attention(*pair))  # the same as forward's: batch norm in train mode does not depend on the past
        afd(*pair)
    mean = torch.cat(seen).mean(0)
    assert torch.allclose(afd.links / afd.seen, mean, atol=1e-6)
    afd.eval()(*pair)
    assert afd.seen == 18
    assert not any("links" in k or "seen" in k for k in afd.state_dict())  # published AFD checkpoints have none


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_the_student_and_never_the_teacher(name):
    student, teacher = create_model("wrn_10_1", 5), create_model("wrn_16_1", 5)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    distiller = Distiller(student, teacher, {name: 1.0}, images).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    terms, logits = distiller(images, labels)
    assert terms[name].shape == () and logits.shape == (4, 5)
    terms[name].backward()
    assert float(student.conv1.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    assert not teacher.training
    assert not any("teacher" in k for k in distiller.trained().state_dict())


def test_the_objective_is_the_weighted_sum():
    student, teacher = create_model("wrn_10_1", 5), create_model("wrn_16_1", 5)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    terms, logits = Distiller(student, teacher, {"kd": 0.9, "afd": 200.0}, images)(images, labels)
    assert torch.allclose(terms["ce"], F.cross_entropy(logits, labels))
    assert torch.allclose(terms["total"], terms["ce"] + 0.9 * terms["kd"] + 200 * terms["afd"])


def test_kd_is_left_out_where_the_classes_differ():
    student, teacher = create_model("wrn_10_1", 5), create_model("wrn_16_1", 9)
    distiller = Distiller(student, teacher, {"kd": 0.9, "afd": 200.0}, torch.randn(2, 3, 16, 16))
    assert list(distiller.losses) == ["afd"]
    assert distiller.left_out == ["kd is left out: the teacher knows 9 classes, the data set has 5"]


def test_unknown_losses_and_missing_teachers_are_refused():
    student = create_model("wrn_10_1", 5)
    with pytest.raises(InputError, match="unknown loss 'crd': choose one of afd, at, fitnet, kd"):
        Distiller(student, student, {"crd": 1.0}, torch.randn(2, 3, 16, 16))
    with pytest.raises(InputError, match="need a teacher"):
        Distiller(student, None, {"kd": 1.0})


def test_maps_are_paired_from_shallow_to_deep():
    few, many = (Output(None, tuple(torch.full((1, 1, 1, 1), float(i)) for i in range(n))) for n in (3, 6))
    assert [int(h_t) for _, h_t in evenly(many, few)] == [1, 3, 5]
    assert [int(h_t) for _, h_t in evenly(few, many)] == [0, 0, 0, 1, 1, 2]
