import pytest
import torch
from helpers import break_off, press_stop, quiet, tiny, tiny_run, weights

from kdnb import LOSSES, METHODS, InputError, Loss, Output, Run, create_model, train
from kdnb.losses.mix import applicable_terms, canonical, label, options_of, parse
from kdnb.models import base


def test_the_methods_are_weighed_as_published():
    assert (
        METHODS.items()
        >= {"none": "ce", "kd": "ce:0.1 + kd:0.9", "afd": "ce + kd:0.9 + afd:200"}.items()
    )
    assert [(term.loss, term.weight) for term in parse("afd")] == [
        ("ce", 1),
        ("kd", 0.9),
        ("afd", 200),
    ]
    own = {"afd": "ce + afd:7"}  # a data set may weigh one otherwise
    assert canonical(parse("afd", own)) == "ce + afd:7" and label(
        "ce + afd:7", own
    ) == "afd" != label(METHODS["afd"], own)


@pytest.mark.parametrize(
    ("text", "spelt", "name"),
    [
        ("afd:200+kd:0.9+ce:1.0", "ce + kd:0.9 + afd:200", "afd"),
        (" kd ", "ce:0.1 + kd:0.9", "kd"),
        ("ce + kd( T = 2 )+afd:1e+06(qk_dim=8)", "ce + kd(T=2.0) + afd:1000000(qk_dim=8)", None),
        (
            "ce + kd:0.123456789(T=4)",
            "ce + kd:0.123456789",
            None,
        ),  # no digit is lost; 4 is the default
    ],
)
def test_a_mix_has_one_spelling(text, spelt, name):
    assert canonical(parse(text)) == spelt == canonical(parse(spelt)) and label(spelt) == (
        name or spelt
    )


def test_a_loss_by_itself_is_not_the_method_of_its_name():
    for loss in LOSSES:
        alone = parse(f"{loss}:1")
        assert [(term.loss, term.weight) for term in alone] == [(loss, 1)] and parse(
            canonical(alone)
        ) == alone


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "foo",
            f"unknown method 'foo': choose one of {', '.join(METHODS)}, or a mix such as 'ce:0.1",
        ),
        ("ce + foo:2", f"unknown loss 'foo': choose one of {', '.join(sorted(LOSSES))}"),
        ("ce:0", "the weight of ce is 0: it must be a number above 0"),
        ("ce + kd + kd:2", "names kd twice"),
        ("ce + ", "'' cannot be read; write a mix such"),
        ("kd:nan(T=2", "cannot be read"),
        ("kd:1(tau=3)", "kd has no option 'tau': choose one of T"),
        ("kd:1(T=2, T=3)", "kd has T twice"),
        ("kd:1(T=0)", "T of kd is '0': it must be a number above 0, such as 4.0"),
        (
            "afd:1(qk_dim=2.5)",
            "qk_dim of afd is '2.5': it must be a whole number above 0, such as 128",
        ),
        ("ce + rkd(angle=-1)", "angle of rkd is '-1': it must be a number of 0 or more, such as"),
        ("ce + crd(K=0)", "K of crd is '0': it must be a whole number above 0, such as 16384"),
        ("ce + wttm(gamma=0)", "gamma of wttm is '0': it must be a number above 0, such as 0.2"),
        ("ce + vid(variance=0)", "variance of vid is '0': it must be a number above 0"),
        ("ce + nkd(gamma=inf)", "gamma of nkd is 'inf': it must be a number of 0 or more"),
    ],
)
def test_what_is_no_method_gets_a_sentence(text, sentence):
    with pytest.raises(InputError) as error:
        parse(text)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        ("rkd", "distance"),
        ("rkd", "angle"),
        ("dkd", "alpha"),
        ("dkd", "beta"),
        ("dist", "beta"),
        ("dist", "gamma"),
        ("nkd", "gamma"),
        ("crd", "momentum"),
    ],
)
def test_a_part_of_a_loss_may_have_weight_0(loss, option):
    (term,) = parse(f"{loss}:1({option}=0)")
    assert term.options == {option: 0}
    assert canonical(parse(f"{loss}:1({option}=-0.0)")) == canonical([term])
    assert parse(canonical([term])) == (term,)


@pytest.mark.parametrize("loss", LOSSES)
def test_what_may_be_0_is_an_option(loss):
    assert LOSSES[loss].may_be_zero <= options_of(loss).keys()


def test_a_part_of_weight_0_leaves_the_other():
    torch.manual_seed(0)
    outputs = [Output(torch.randn(6, 5), (), pooled=torch.randn(6, 8)) for _ in range(2)]
    loss = {
        name: LOSSES["rkd"](*outputs, **{name: 0.0})(*outputs, None)
        for name in ("distance", "angle")
    }
    both = LOSSES["rkd"](*outputs)(*outputs, None)
    assert min(loss.values()) > 0 and sum(loss.values()).item() == pytest.approx(both.item())


def test_what_a_teacher_of_other_classes_can_serve():
    terms = parse("afd")
    assert applicable_terms(terms, True, False) == (terms, ()) and applicable_terms(
        terms, False, True
    ) == ((terms[0], terms[2]), ("kd",))
    for method, allow_partial in (
        ("afd", False),
        ("kd", True),
    ):  # nothing of the teacher would be left of the second
        with pytest.raises(
            InputError, match=r"kd compares predictions.* \(.*afd.*\) such as 'ce \+ afd:200', or"
        ):
            applicable_terms(parse(method), False, allow_partial)


def test_a_loss_and_a_network_are_added_by_a_class_and_a_call(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "FAMILIES", base.FAMILIES.copy())
    of = {"method": "pooled", "student": "widest_1"}

    class Pooled(Loss, name="pooled", method="ce + pooled:0.5"):
        warmup = 2

        def __init__(self, student, teacher, *, power: int = 2):
            super().__init__()
            self.power, self.embed = (
                power,
                torch.nn.Linear(student.pooled.shape[1], teacher.pooled.shape[1]),
            )
            self.register_running_mean("seen", (2,))

        def forward(self, student, teacher, batch):
            self.track("seen", torch.stack([batch.index.float(), batch.labels.float()], 1))
            noise = torch.rand(64)  # random numbers, too, go on where they were
            return (self.embed(student.pooled + noise) - teacher.pooled).pow(self.power).mean()

    @base.register(r"widest_(\d)", "widest_{}", "widest_N")
    def build(n, num_classes):
        return create_model(f"wrn_10_{n}", num_classes)

    try:
        made = train(tiny_run(tmp_path, **of), log=quiet)
        break_off(
            broken := tiny_run(tmp_path / "x", **of, teacher_weights=str(made.teacher_run.folder)),
            3,
            press_stop,
        )
        assert weights(train(broken, log=quiet)) == weights(made)
        assert (
            made.label == "pooled" and made.student == "widest_1" and Run.open(made.folder) == made
        )
        total, ce, pooled = (made.metrics[f"train_{name}"] for name in ("total", "ce", "pooled"))
        assert ((total - ce) / pooled).tolist() == pytest.approx(
            [0.25, 0.5, 0.5], rel=1e-4
        )  # it warms up over two epochs
        assert (
            made.history["pooled.seen"].tolist() == [pytest.approx([34.5, 103 / 70])] * 3
        )  # of each epoch's images
    finally:
        del LOSSES["pooled"], METHODS["pooled"]
