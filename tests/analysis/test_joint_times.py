"""kdnb.analysis.joint_times: steps of several runs are timed as they are trained."""

import pytest
from helpers import tiny, tiny_run

from kdnb.analysis import joint_times
from kdnb.analysis.joint_times import Trial, seeds
from kdnb.training.distiller import Distiller


def test_a_joint_step_of_some_seeds_is_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(joint_times, "STEPS", 1)
    run = tiny_run(tmp_path, method="kd")
    table = joint_times.joint_times([seeds(run, 1), seeds(run, 2)], compiled=False, repeats=1)
    assert table["runs"].tolist() == [1, 2]
    assert table["gain"][0] == 1 and (table["ms"] > 0).all()
    assert table["steps/s"].to_numpy() == pytest.approx(1000 * table["runs"] / table["ms"])


def test_it_makes_a_step_of_each_run_which_share_what_they_do_in_training(tmp_path, monkeypatch):
    answered = []
    run_teacher = Distiller.run_teacher
    monkeypatch.setattr(
        Distiller, "run_teacher", lambda *given: answered.append(1) or run_teacher(*given)
    )
    runs = [tiny_run(tmp_path, method=method) for method in ("none", "kd", "afd")]
    trial = Trial(runs, compiled=False)
    trial.make(3)
    images = {engine.sums[-2].item() for engine in trial.engines}
    assert images == {len(answered) * 16}  # the batch's images of each step
    trial.close()
