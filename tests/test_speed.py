import torch

from kdnb import charts
from kdnb.experiment import Experiment
from kdnb.speed import Speed, alternate, convolution_bytes, peak_memory

CPU = torch.device("cpu")


def test_a_step_is_taken_apart():
    experiment = Experiment(teacher="wrn_16_1", student="wrn_10_1", train_limit=128, device="cpu", precision="float32")
    speed = Speed(experiment, repeats=1)
    whole, parts, floor, loaders = speed.whole(compiled=False), speed.parts(), speed.floor(), speed.loaders()
    assert whole["step"].tolist() == ["plain, float32", "engine, float32"]
    assert whole["AFD (%)"].isna().tolist() == [True, False]
    assert parts["part"].tolist() == ["batch", "teacher", "student", "kd", "afd", "optimiser"]
    assert abs(parts["share (%)"].sum() - 100) < 1e-6
    assert all((table.select_dtypes("number").fillna(1) > 0).all(axis=None) for table in (parts, floor, loaders))
    figure = charts.step_times(whole, parts, floor, speed.machine())
    assert "times the floor" in figure.axes[0].get_title()
    page = speed.page(whole, parts, floor, loaders)
    assert page.startswith("# A distillation step: wrn_16_1 teaches wrn_10_1 on digits, 8 px, batch 64")
    assert all(f"| {part} |" in page for part in parts["part"])


def test_every_candidate_runs_in_turn():
    calls = []
    alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, repeats=3)
    assert calls == ["a", "b", "b", "a"] * 2 + ["a", "b"]  # there and back; two warm-ups


def test_bytes_are_those_of_the_convolutions():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.ReLU())
    assert convolution_bytes(model, torch.zeros(2, 3, 4, 4), itemsize=2) == 2 * 2 * 16 * (3 + 5)
    assert not model[0]._forward_hooks


def test_peak_memory_sees_a_large_tensor():
    measured = peak_memory(lambda: torch.ones(64 * 2**20, dtype=torch.uint8).max(), CPU)
    assert measured is None or 60 < measured < 70
