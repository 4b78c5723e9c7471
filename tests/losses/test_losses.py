import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from published_losses import PUBLISHED, build_loss, skip_unless_published
from torch import nn

from kdnb import LOSSES, Distiller, InputError, Output, create_model
from kdnb.data import Batch
from kdnb.losses.afd import AFD
from kdnb.losses.base import Loss, align_from_deepest, average_pool, match_size
from kdnb.losses.crd import CRD
from kdnb.losses.fitnet import regressor
from kdnb.losses.ofd import margins
from kdnb.losses.semckd import relations
from kdnb.losses.vid import VID
from kdnb.models import blocks

NO_BATCH = Batch(None, None, None)
LABELS = torch.arange(20) % 5  # of a training set
BATCH = Batch(
    torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
    LABELS[4:10],
    torch.arange(4, 10),
)
# Biases whose gradient is 0 but for rounding, because batch norm follows.
BEFORE_BATCH_NORM = (
    r"fitnet\.conv\.bias|srd\.linear\.bias|afd\.(queries\.\d+|keys\.\d+|bilinear)\.0\.bias"
)
LAYERED = {
    "afd",
    "fitnet",
    "ofd",
    "reviewkd",
    "semckd",
    "simkd",
    "vid",
}  # layers of theirs compute under autocast as a network's do
with_teacher = pytest.mark.parametrize(
    "name", [name for name in LOSSES if LOSSES[name].needs_teacher]
)


def made(name, pair):
    """A loss between two networks, in train mode and set up."""
    loss = build_loss(name, pair)
    loss.setup(LABELS)
    return loss


def cast(value, dtype):
    return (
        tuple(cast(v, dtype) for v in value)
        if isinstance(value, tuple)
        else value.detach().to(dtype)
    )


def dead_like(value):
    """Zeros in place of a tensor, or of a tuple of them."""
    if isinstance(value, tuple):
        return tuple(map(dead_like, value))
    return torch.zeros_like(value).requires_grad_()


@pytest.fixture
def networks():
    """(student, teacher), small ones."""
    return create_model("wrn_10_1", 5), create_model("wrn_16_1", 5)


@pytest.fixture
def pair(networks):
    """Their outputs on the same images."""
    return tuple(network(BATCH.images) for network in networks)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if LOSSES[name].teacher_outputs != {*Output._fields}]
)
def test_a_loss_reads_no_more_of_the_teacher_than_it_declares(name, pair):
    """Else a loss would find an empty Output where the teacher's answers are stored."""
    student, teacher = pair
    fields = LOSSES[name].teacher_outputs
    rest = {field: getattr(teacher, field) for field in fields}
    alone = Output(**{"logits": None, "feats": ()} | rest)
    values = []
    for output in (teacher, alone):
        torch.manual_seed(0)
        values.append(made(name, pair)(student, output, BATCH))
    assert torch.equal(*values)


def test_links_are_the_mean_attention_since_they_were_zeroed(pair):
    afd = AFD(*pair).train()
    seen = []
    for _ in range(3):
        seen.append(
            afd.attention(*pair)
        )  # the same as forward's: batch norm in train mode does not depend on the past
        afd(*pair, NO_BATCH)
    assert torch.allclose(afd.means()["links"], torch.cat(seen).mean(0), atol=1e-6)
    afd.eval()(*pair, NO_BATCH)
    assert afd.links_count == 18  # what is not trained on does not count
    assert not any(
        "links" in key for key in afd.state_dict()
    )  # published AFD checkpoints have none
    afd.register_buffer(
        "kernel_sum", torch.ones(2), persistent=False
    )  # a constant of somebody's own
    assert set(afd.running_buffers()) == {"links_sum", "links_count"} and set(afd.means()) == {
        "links"
    }


@with_teacher
def test_every_loss_trains_the_student_and_itself_and_never_the_teacher(networks, name):
    student, teacher = networks
    distiller = Distiller(student, teacher, f"{name}:1", BATCH.images, labels=LABELS).train()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    terms, logits = distiller(*BATCH)
    assert list(terms) == ["total", name] and terms[name].shape == () and logits.shape == (6, 5)
    terms["total"].backward()
    assert float(student.conv1.weight.grad.abs().sum()) > 0
    own = {k: float(p.grad.abs().sum()) for k, p in distiller.losses.named_parameters()}
    if name in PUBLISHED:
        without_gradient = {k for k, size in own.items() if not size}
        assert without_gradient <= {k for k in own if re.fullmatch(BEFORE_BATCH_NORM, k)}
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(v, teacher.state_dict()[k]) for k, v in before.items())
    assert not teacher.training
    assert not any("teacher" in k for k in distiller.trainable().state_dict())


def test_a_teacher_is_frozen_and_stays_so(networks):
    """Its weights ask for no gradients; they get none even if somebody asks for all of them."""
    distiller = Distiller(*networks, "kd", BATCH.images)
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    distiller.requires_grad_(True)
    distiller.train()(*BATCH)[0]["total"].backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(p.grad is not None for p in distiller.student.parameters())


@with_teacher
def test_dead_maps_have_finite_losses_and_gradients(pair, name):
    skip_unless_published(name)
    loss = made(name, pair)
    dead = Output(*(dead_like(value) for value in pair[0]))
    for teacher in (pair[1], Output(*(dead_like(value) for value in pair[1]))):
        value = loss(dead, teacher, BATCH)
        value.backward()
        leaves = [dead.logits, *dead.feats, *dead.stages, dead.pooled, *loss.parameters()]
        grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
        assert torch.isfinite(value) and grads and all(torch.isfinite(grad).all() for grad in grads)


@with_teacher
def test_under_autocast_a_loss_is_computed_in_float32(pair, name):
    """It equals the loss of the same inputs, rounded to bfloat16, in float32."""
    skip_unless_published(name)
    half = [Output(*(cast(value, torch.bfloat16) for value in output)) for output in pair]
    loss = made(name, pair)
    torch.manual_seed(1)
    exact = copy.deepcopy(loss)(
        *(Output(*(cast(value, torch.float32) for value in output)) for output in half), BATCH
    )
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*half, BATCH)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=0.05 if name in LAYERED else 1e-5)


@with_teacher
def test_a_compiled_loss_is_one_graph_and_the_same(pair, name):
    """One graph: nothing in it depends on values, as .item() and boolean indexing would."""
    skip_unless_published(name)
    loss = made(name, pair)
    torch.manual_seed(1)
    eager = copy.deepcopy(loss)(*pair, BATCH)
    torch.compiler.reset()
    torch.manual_seed(1)
    compiled = torch.compile(loss, backend="eager", fullgraph=True, dynamic=False)(*pair, BATCH)
    assert compiled.item() == pytest.approx(eager.item(), rel=1e-5)


@with_teacher
@pytest.mark.parametrize(
    "names", [("resnet18", "wrn_16_1"), ("wrn_10_1", "resnet18"), ("wrn_10_2", "wrn_10_1")]
)
def test_every_loss_takes_any_two_networks_or_says_why_not(name, names):
    """Other numbers of stages, other widths and sizes of maps, and other classes."""
    student, teacher = (
        create_model(names[0], 5),
        create_model(names[1], 5 if LOSSES[name].same_classes else 7),
    )
    images = torch.randn(6, 3, 24, 24)
    try:
        distiller = Distiller(student, teacher, f"{name}:1", images, labels=LABELS).train()
    except InputError as error:
        if name in PUBLISHED:
            assert name == "fitnet" and "has no convolution from maps of" in str(error)
    else:
        terms, _ = distiller(images, BATCH.labels, BATCH.index)
        terms["total"].backward()
        assert torch.isfinite(terms["total"]) and float(student.conv1.weight.grad.abs().sum()) > 0


def test_maps_are_paired_from_the_deepest_on_and_fit_to_the_smaller():
    assert align_from_deepest("abcd", "xyz") == [
        ("b", "x"),
        ("c", "y"),
        ("d", "z"),
    ] and align_from_deepest("ab", "xyz")[0] == ("a", "y")
    wide, high = torch.randn(2, 3, 4, 8), torch.randn(2, 5, 6, 2, dtype=torch.bfloat16)
    h_s, h_t = match_size(wide, high)
    assert h_s.shape == (2, 3, 4, 2) and h_t.shape == (2, 5, 4, 2) and h_t.dtype == torch.float32
    assert (
        torch.allclose(h_s, wide.unflatten(3, (2, 4)).mean(4)) and match_size(wide, wide)[0] is wide
    )


@pytest.mark.parametrize("size", [(8, 8), (4, 2), (3, 5), (16, 16), (8, 3)])
def test_pooling_has_the_bits_of_adaptive_pooling(size):
    """Runs of before, which pooled adaptively in any case, can go on."""
    torch.manual_seed(0)
    maps = torch.randn(3, 5, 8, 8, requires_grad=True)
    pooled = average_pool(maps, size), torch.nn.functional.adaptive_avg_pool2d(maps, size)
    assert torch.equal(*pooled)
    weights = torch.randn(pooled[0].shape)
    assert torch.equal(*(torch.autograd.grad((weights * p).sum(), maps)[0] for p in pooled))


@pytest.mark.parametrize(
    ("sizes", "kernel", "kind"),
    [
        (((6, 4), (6, 4)), (1, 1), nn.Conv2d),
        (((6, 4), (3, 2)), (3, 3), nn.Conv2d),
        (((3, 2), (6, 4)), (4, 4), nn.ConvTranspose2d),
        (((7, 4), (5, 3)), (3, 2), nn.Conv2d),
    ],
)
def test_the_regressor_of_fitnet_gives_maps_of_the_teachers_shape(sizes, kernel, kind):
    h_s, h_t = (torch.randn(2, 3 + i, *size) for i, size in enumerate(sizes))
    conv = regressor(h_s, h_t)
    assert isinstance(conv, kind) and conv.kernel_size == kernel and conv(h_s).shape == h_t.shape


def test_vid_starts_at_its_variance(pair):
    for variance in (5.0, 0.1, 1000.0):
        scales = VID(*pair, variance=variance).scales
        assert all(
            F.softplus(scale).tolist() == pytest.approx([variance] * len(scale), rel=1e-3)
            for scale in scales
        )


@pytest.mark.parametrize("K", [3, 30, 60])
def test_the_negatives_of_crd_are_of_other_classes(pair, K):
    """All are drawn equally often, and at most once for an image if there are enough."""
    labels = torch.tensor([0] * 10 + [1] * 20 + [2] * 20)
    crd = CRD(*pair, K=K)
    crd.setup(labels)
    asked = torch.tensor([0, 1, 2]).repeat(400)
    drawn = crd.negatives(asked)
    assert drawn.shape == (1200, K) and (labels[drawn] != asked[:, None]).all()
    assert (len(set(drawn[0].tolist())) == K) == (K <= 30)
    often = torch.stack(
        [drawn[asked == label].flatten().bincount(minlength=50) for label in range(3)]
    ).float()
    expected = (
        400 * K / torch.tensor([40.0, 30, 30])[:, None] * (labels != torch.arange(3)[:, None])
    )
    assert ((often - expected).abs() <= 6 * expected.sqrt()).all()


def test_the_negatives_of_crd_are_its_own(pair):
    """Else runs in one process, such as branches of one CUDA graph, draw what none draws alone."""
    crd = CRD(*pair, K=4)
    crd.setup(LABELS)
    other = copy.deepcopy(crd)
    generator = torch.get_rng_state()
    alone = [crd.negatives(BATCH.labels) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), generator)
    together = []
    for _ in range(2):
        torch.rand(1)
        CRD(*pair)
        together.append(other.negatives(BATCH.labels))
    assert not torch.equal(*alone) and all(map(torch.equal, alone, together))


def test_crd_compares_each_image_with_itself_before_its_negatives(pair):
    """The first column of the places is the positive: contrast takes it for the image itself."""
    crd = CRD(*pair, K=4).eval()
    crd.setup(LABELS)
    position = crd.random.position.clone()
    loss = crd(*pair, BATCH)
    crd.random.position.copy_(position)
    places = torch.cat([BATCH.index[:, None], crd.negatives(BATCH.labels)], 1)
    expected = crd.contrast(pair[0].pooled, pair[1].pooled, BATCH.index, places)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    swapped = crd.contrast(pair[0].pooled, pair[1].pooled, BATCH.index, places.flip(1))
    assert loss.item() != pytest.approx(swapped.item(), rel=1e-3)


def test_the_momentum_of_crd_is_how_much_of_a_row_stays(pair):
    crd = CRD(*pair, momentum=0.9).train()
    crd.setup(LABELS)
    before = crd.memory_s.clone()
    with torch.no_grad():
        embedded = F.normalize(crd.embed_s(pair[0].pooled))
        crd(*pair, BATCH)
    rows = F.normalize(0.9 * before[BATCH.index] + 0.1 * embedded)
    assert torch.allclose(crd.memory_s[BATCH.index], rows, atol=1e-6)


def test_crd_remembers_the_first_of_two_views_of_an_image(pair):
    """In either place: which of two rows is written last is not defined on a GPU."""
    crd = CRD(*pair).train()
    crd.setup(LABELS)
    before = crd.memory_s.clone()
    index = torch.tensor([4, 5, 6, 4, 5, 6])
    with torch.no_grad():
        embedded = F.normalize(crd.embed_s(pair[0].pooled))[:3]
        crd(*pair, BATCH._replace(index=index, labels=LABELS[index]))
    rows = F.normalize(0.5 * before[4:7] + 0.5 * embedded)
    assert torch.allclose(crd.memory_s[4:7], rows, atol=1e-6)


@pytest.mark.parametrize("name", ["dkd", "nkd"])
def test_the_other_classes_are_compared_without_the_labels(pair, name):
    """The label's logit is masked out: a constant added to all logits has no effect."""
    lower = [output._replace(logits=output.logits - 50) for output in pair]
    loss = made(name, pair)
    assert loss(*lower, BATCH).item() == pytest.approx(loss(*pair, BATCH).item(), rel=1e-3)


def test_the_variance_of_vid_has_a_least_value(pair):
    """1e-5, where the trained variance has come down to 0: the loss stays finite."""
    vid = VID(*pair)
    for scale in vid.scales:
        scale.data.fill_(-200.0)
    loss = vid(*pair, NO_BATCH)
    pairs = align_from_deepest(pair[0].stages, pair[1].stages)
    expected = sum(
        (F.mse_loss(regress(h_s), h_t) / 1e-5 + math.log(1e-5)) / 2
        for regress, (h_s, h_t) in zip(vid.regressors, pairs, strict=True)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_crd_remembers_what_it_saw_in_training(pair):
    crd = CRD(*pair)
    with pytest.raises(
        InputError, match="crd has a memory of the training images: it needs all of their labels"
    ):
        crd(*pair, BATCH)
    with pytest.raises(InputError, match="all training images are of one"):
        crd.setup(torch.zeros(9, dtype=torch.long))
    crd.setup(LABELS)
    before = copy.deepcopy(crd.state_dict())
    assert float(before["memory_s"].abs().max()) <= (128 / 3) ** -0.5 and crd.Z_s == crd.Z_t == -1
    crd.eval()(*pair, BATCH)
    remembered = ("memory_s", "memory_t", "Z_s", "Z_t")
    assert all(torch.equal(getattr(crd, name), before[name]) for name in remembered)
    crd.train()(*pair, BATCH)
    changed = (crd.memory_t != before["memory_t"]).any(1)
    assert (
        changed.nonzero().flatten().tolist() == sorted(BATCH.index.tolist())
        and crd.Z_s > 0
        and crd.Z_t > 0
    )


def test_predictions_of_other_classes_are_left_out_or_refused():
    networks, example = (
        (create_model("wrn_10_1", 5), create_model("wrn_16_1", 9)),
        torch.randn(2, 3, 16, 16),
    )
    allow_partial = Distiller(*networks, "afd", example, allow_partial=True)
    assert (
        "weights" not in allow_partial.state_dict()
        and list(allow_partial.losses) == ["ce", "afd"]
        and allow_partial.left_out == ("kd",)
        and len(allow_partial.weights) == 2
    )
    for method, options in (("afd", {}), ("kd", {"allow_partial": True})):
        with pytest.raises(
            InputError, match="kd compares predictions, and this teacher knows other classes"
        ):
            Distiller(*networks, method, example, **options)


def test_a_method_of_losses_needs_a_teacher_and_none_runs_none(networks):
    with pytest.raises(
        InputError, match=r"the method ce:0.1 \+ kd:0.9 needs a teacher and an example batch"
    ):
        Distiller(networks[0], None, "kd")
    assert Distiller(*networks, "none", torch.randn(2, 3, 16, 16)).teacher is None


def test_a_loss_without_a_teacher_learns_the_students_shapes(networks, registries):
    """Self-distillation builds a classifier for each block, so it needs their shapes."""

    class Blocks(Loss, name="blocks"):
        needs_teacher = False

        def __init__(self, student, teacher):
            super().__init__()
            self.channels = [feat.shape[1] for feat in student.feats]
            assert teacher is None

    student, _ = networks
    losses = Distiller(student, None, "ce + blocks", torch.zeros(2, 3, 32, 32)).losses
    assert losses["blocks"].channels == [block.shape[0] for block in blocks(student, 32)]


@with_teacher
@pytest.mark.parametrize("images", [2, 5, 14])
def test_every_loss_takes_a_smaller_and_a_larger_batch(networks, pair, name, images):
    """The last batch of an epoch is smaller than the others; a test's may be larger."""
    skip_unless_published(name)
    if LOSSES[name].views == 2:
        images += images % 2
    loss = made(name, pair)
    x = torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    outputs = [network(x) for network in networks]
    value = loss(*outputs, Batch(x, torch.arange(images) % 5, torch.arange(images)))
    value.backward()
    grads = [p.grad for p in networks[0].parameters() if p.grad is not None]
    assert torch.isfinite(value) and grads and all(g.isfinite().all() for g in grads)


def test_the_rows_of_semckd_are_padded_and_its_batches_parts(pair):
    feat = torch.randn(5, 3, 2, 2)
    products = feat.flatten(1) @ feat.flatten(1).T
    assert torch.allclose(relations(feat, 8)[:, :5], products, atol=1e-5)
    assert not relations(feat, 8)[:, 5:].any()
    parts = relations(feat, 3)
    assert torch.allclose(parts[:3], products[:3, :3], atol=1e-5)
    assert torch.allclose(parts[3:, :2], products[3:, 3:], atol=1e-5) and not parts[3:, 2].any()


def test_the_links_of_semckd_are_between_the_last_blocks_of_the_stages(pair):
    """A teacher of six blocks and a student of three, with three stages each."""
    semckd = build_loss("semckd", pair).train()
    semckd(*pair, NO_BATCH)
    links = semckd.means()["links"]
    assert links.shape == (6, 3) and torch.allclose(links.sum(0), torch.ones(3), atol=1e-6)
    assert links.any(1).tolist() == [False, True] * 3


def test_simkd_predicts_by_the_teachers_classifier(pair):
    simkd = build_loss("simkd", pair).eval()
    h = pair[0].feats[-1]
    logits = simkd.classifiers.teacher(simkd.transfer(h).mean((2, 3)))
    assert torch.allclose(simkd.predict(pair[0]).logits, logits)
    # A student's larger map is averaged to the size of the teacher's.
    large = pair[0]._replace(feats=(F.interpolate(h, scale_factor=2),))
    assert torch.allclose(simkd.predict(large).logits, logits, atol=1e-5)


def test_the_margins_of_ofd_are_means_over_the_batches_seen_in_training(pair):
    ofd = build_loss("ofd", pair).train()
    for _ in range(2):
        ofd(*pair, NO_BATCH)
    x = pair[1].preacts[0].transpose(0, 1).flatten(1)  # c n
    expected = margins(x.mean(1), x.std(1, correction=0))
    assert torch.allclose(ofd.eval().margin(0, pair[1].preacts[0]), expected, atol=1e-4)
    assert ofd.batches == 2
