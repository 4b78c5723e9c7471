import pytest
import torch
import torch.nn.functional as F

from kdnb import LOSSES, Distiller, InputError, Output, create_model
from kdnb.data import Batch
from kdnb.losses.afd import AFD, Statistics
from kdnb.losses.kd import KD

NO_BATCH = Batch(None, None, None)


@pytest.fixture
def networks():
    """(student, teacher), small ones."""
    return create_model("wrn_10_1", 5), create_model("wrn_16_1", 5)


@pytest.fixture
def pair(networks):
    """Their outputs on the same images."""
    images = torch.randn(6, 3, 16, 16)
    return tuple(network(images) for network in networks)


def test_kd_is_the_kl_divergence_of_the_softened_predictions():
    student, teacher = (Output(torch.randn(5, 7), ()) for _ in range(2))
    p, q = F.softmax(teacher.logits / 3, 1), F.softmax(student.logits / 3, 1)
    expected = (p * (p / q).log()).sum(1).mean() * 9
    assert torch.allclose(KD(student, teacher, T=3)(student, teacher, NO_BATCH), expected, rtol=1e-5)
    assert abs(float(KD(student, teacher)(teacher, teacher, NO_BATCH))) < 1e-6


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
    usual = (feat.square().mean(1) * weights[0]).sum() + (feat.mean((2, 3)) * weights[1]).sum()
    assert torch.allclose(own, torch.autograd.grad(usual, feat)[0], rtol=1e-4, atol=1e-6)


def test_dead_maps_have_finite_losses_and_gradients(pair):
    student, teacher = pair
    feats = tuple(torch.zeros_like(f).requires_grad_() for f in student.feats)
    loss = AFD(student, teacher)(Output(student.logits, feats), teacher, NO_BATCH)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(f.grad).all() for f in feats)


def test_links_are_the_mean_attention_since_they_were_zeroed(pair):
    afd = AFD(*pair).train()
    seen = []
    for _ in range(3):
        seen.append(afd.attention(*pair))  # the same as forward's: batch norm in train mode does not depend on the past
        afd(*pair, NO_BATCH)
    assert torch.allclose(afd.means()["links"], torch.cat(seen).mean(0), atol=1e-6)
    afd.eval()(*pair, NO_BATCH)
    assert afd.links_count == 18  # what is not trained on does not count
    assert not any("links" in key for key in afd.state_dict())  # published AFD checkpoints have none
    assert set(afd.running_buffers()) == {"links_sum", "links_count"}


@pytest.mark.parametrize("name", [name for name in LOSSES if LOSSES[name].taught])
def test_every_loss_trains_the_student_and_never_the_teacher(networks, name):
    student, teacher = networks
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    distiller = Distiller(student, teacher, f"{name}:1", images).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    terms, logits = distiller(images, labels, torch.arange(4))
    assert list(terms) == ["total", name] and terms[name].shape == () and logits.shape == (4, 5)
    terms["total"].backward()
    assert float(student.conv1.weight.grad.abs().sum()) > 0
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    assert not teacher.training
    assert not any("teacher" in k for k in distiller.trained().state_dict())


def test_the_objective_is_the_weighted_sum(networks):
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    distiller = Distiller(*networks, "afd", images)
    terms, logits = distiller(images, labels)
    assert torch.allclose(terms["ce"], F.cross_entropy(logits, labels))
    assert torch.allclose(terms["total"], terms["ce"] + 0.9 * terms["kd"] + 200 * terms["afd"])
    assert set(distiller.means()) == {"afd.links"} and "weights" not in distiller.state_dict()


def test_weights_of_a_loss_with_a_warm_up_rise(networks, monkeypatch):
    monkeypatch.setattr(AFD, "warmup", 4)
    distiller = Distiller(*networks, "afd", torch.randn(2, 3, 16, 16))
    place = distiller.weights.data_ptr()
    for epoch, share in enumerate([0.25, 0.5, 0.75, 1, 1]):
        distiller.start_epoch(epoch)
        assert distiller.weights.tolist() == pytest.approx([1, 0.9, 200 * share])
    assert distiller.weights.data_ptr() == place  # a recorded step reads them there


def test_predictions_of_other_classes_are_left_out_or_refused():
    networks, example = (create_model("wrn_10_1", 5), create_model("wrn_16_1", 9)), torch.randn(2, 3, 16, 16)
    partly = Distiller(*networks, "afd", example, partly=True)
    assert list(partly.losses) == ["ce", "afd"] and partly.left_out == ("kd",) and len(partly.weights) == 2
    for method, options in (("afd", {}), ("kd", {"partly": True})):
        with pytest.raises(InputError, match="kd compares predictions, and this teacher knows other classes"):
            Distiller(*networks, method, example, **options)


def test_a_method_of_losses_needs_a_teacher_and_none_runs_none(networks):
    with pytest.raises(InputError, match=r"the method ce:0.1 \+ kd:0.9 needs a teacher and an example batch"):
        Distiller(networks[0], None, "kd")
    assert Distiller(*networks, "none", torch.randn(2, 3, 16, 16)).teacher is None
