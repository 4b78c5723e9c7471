"""Compiled steps: what they compute, and what happens if they cannot be compiled."""

import shutil
import warnings
from functools import partial

import pytest
import torch
from helpers import break_off, equal_runs, quiet, teacher, tiny, tiny_run, weights
from torch._dynamo.testing import CompileCounter

from kdnb import InputError, train, train_together
from kdnb.training import compiling

has_compiler = any(map(shutil.which, ("c++", "g++", "clang++")))


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler, reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("error:.*not compiled")
@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({"method": "none"}, "inductor"),
        ({"method": "afd"}, "aot_eager"),  # inductor takes minutes for AFD
        ({"method": "kd", "views": 2, "mix": "mixup", "ema": 0.9}, "aot_eager"),
    ],
    ids=["none", "afd", "two mixed views"],
)
def test_a_compiled_step_computes_what_an_eager_one_does(
    teacher, tmp_path, monkeypatch, fields, backend
):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    fields = fields | {"teacher_weights": teacher, "epochs": 1}
    eager = train(tiny_run(tmp_path / "eager", compile="off", **fields), log=quiet)
    compiled = train(tiny_run(tmp_path / "compiled", compile="on", **fields), log=quiet)
    assert compiled == eager
    assert compiled.config["machines"][0]["compile"]
    total = compiled.metrics["train_total"].to_numpy()
    assert total == pytest.approx(eager.metrics["train_total"].to_numpy(), rel=1e-3)


class FailingBackward(torch.autograd.Function):
    """What a compiler can do to a loss: the backward pass fails, as inductor's did on a GPU, after
    a correct forward pass."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError(
            "expected size 128==128, stride 9==1 at dim=1\nError in op: convolution_backward"
        )


def test_a_step_that_cannot_be_compiled_runs_eagerly_with_the_same_bits(
    teacher, tmp_path, monkeypatch
):
    # With memories, random numbers and running means.
    fields = {"method": "ce + crd:0.1 + afd:20", "teacher_weights": teacher}
    eager = train(tiny_run(tmp_path / "eager", **fields), log=quiet)
    monkeypatch.setenv("CXX", "a compiler")

    def failing_compile(step, **_):
        def compiled(*arguments):
            return FailingBackward.apply(step(*arguments))

        return compiled

    monkeypatch.setattr(torch, "compile", failing_compile)
    run = tiny_run(tmp_path / "failing", **fields, compile="on")
    sentence = "the step is not compiled.*: expected size 128==128, stride 9==1 at dim=1$"
    with pytest.warns(UserWarning, match=sentence):
        break_off(run, 8)
    with warnings.catch_warnings(action="error"):  # nobody tries to compile it again
        assert equal_runs(train(run, log=quiet), eager)
    assert [machine["compile"] for machine in run.config["machines"]] == [False]


def test_a_step_is_compiled_in_the_best_way_that_works(teacher, tmp_path, monkeypatch):
    ways = []

    def compile_without_options(step, dynamic, options):
        ways.append(options)

        def compiled(*arguments):
            if options:
                raise RuntimeError("no such option\nand a trace")
            return step(*arguments)

        return compiled

    monkeypatch.setenv("CXX", "a compiler")
    monkeypatch.setattr(torch, "compile", compile_without_options)
    monkeypatch.setattr(compiling, "OPTIONS", {"cpu": compiling.OPTIONS["cuda"]})
    fields = {"method": "ce + crd:0.1(K=16)", "teacher_weights": teacher}
    run = tiny_run(tmp_path / "a", **fields, compile="on")
    with pytest.warns(UserWarning, match=r"not compiled with combo_kernels, .*: no such option$"):
        train(run, log=quiet)
    assert ways == [{"combo_kernels": True}, None]
    assert [machine["compile"] for machine in run.config["machines"]] == [True]
    eager = train(tiny_run(tmp_path / "b", **fields), log=quiet)
    assert weights(run) == weights(eager)  # the failed step left nothing


def test_only_other_networks_or_methods_are_compiled_anew(teacher, tmp_path, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setenv("CXX", "a compiler")
    common = {"compile": "on", "epochs": 1, "teacher_weights": teacher}
    torch.compiler.reset()
    counts = []
    for fields in ({}, {"seed": 1}, {"method": "kd"}, {"method": "kd", "seed": 1}, {}):
        train(tiny_run(tmp_path / str(len(counts)), **common, **fields), log=quiet)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] < counts[2] == counts[3] < counts[4]
    before = counter.frame_count
    runs = [tiny_run(tmp_path / "together", **common, seed=seed) for seed in range(3)]
    assert all(run.done for run in train_together(runs, quiet))
    assert counter.frame_count == before


@pytest.mark.filterwarnings("error:.*not compiled")
def test_methods_that_are_trained_together_are_all_compiled(tmp_path, monkeypatch):
    """However few versions of one function torch itself would hold."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=CompileCounter()))
    monkeypatch.setenv("CXX", "a compiler")
    torch.compiler.reset()
    common = {"compile": "on", "epochs": 1, "method": "none"}
    runs = [tiny_run(tmp_path, **common, **each) for each in ({}, {"batch_size": 32})]
    limits = {"recompile_limit": 1, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(**limits):
        outcomes = train_together(runs, quiet)
    assert [run.config["machines"][0]["compile"] for run in outcomes] == [True, True]


def test_no_memory_for_a_compiled_step_is_no_failure_of_the_compiler(tmp_path, monkeypatch):
    def out_of_memory(*batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setenv("CXX", "a compiler")
    monkeypatch.setattr(torch, "compile", lambda step, **_: out_of_memory)
    run = tiny_run(tmp_path, method="none", compile="on")
    refused = pytest.raises(InputError, match="CUDA out of memory")
    with warnings.catch_warnings(action="error"), refused:
        train(run, log=quiet)
    assert run.config["machines"][0]["compile"]
