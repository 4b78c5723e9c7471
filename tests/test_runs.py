import json
import multiprocessing
import resource

import numpy as np
import pytest
import torch

from kdnb.errors import InputError
from kdnb.runs import Run, environment, write_atomically


def state(epoch):
    history = [{"epoch": e, "top1": 10.0 * e} for e in range(1, epoch + 1)]
    links = [torch.full((2, 3), float(e)) for e in range(1, epoch + 1)]
    return {"epoch": epoch, "weights": torch.arange(1000) + epoch, "history": history, "links": links}


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "a-run") as run:
        yield run.start({"lr": 0.1, "recipe": {"milestones": (0.5, 0.7)}})


def test_checkpoints_come_back_and_the_one_before_is_kept(run):
    assert run.load() is None
    for epoch in (1, 2):
        run.save(state(epoch))
    assert torch.equal(run.load()["weights"], state(2)["weights"])
    assert run.metrics["epoch"].tolist() == [1, 2]
    assert run.links.shape == (2, 2, 3)
    assert np.array_equal(run.links[1], np.full((2, 3), 2.0))
    (run.folder / "checkpoint").unlink()  # killed between the two renames
    assert run.load()["epoch"] == 1
    assert not list(run.folder.glob("*.part"))


@pytest.mark.parametrize("seed", range(10))
def test_a_torn_checkpoint_is_noticed_and_the_older_one_used(run, seed):
    for epoch in (1, 2):
        run.save(state(epoch))
    path = run.folder / "checkpoint"
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    if seed % 2:
        content = content[: rng.integers(len(content))]
    else:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint is damaged.*the one before"):
        assert run.load()["epoch"] == 1


def test_two_torn_checkpoints_start_over_with_a_warning(run):
    for epoch in (1, 2):
        run.save(state(epoch))
    for name in ("checkpoint", "checkpoint.previous"):
        (run.folder / name).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="damaged"):
        assert run.load() is None


def test_other_parameters_are_refused_by_name(run):
    run.start({"lr": 0.1, "recipe": {"milestones": (0.5, 0.7)}})
    with pytest.raises(InputError, match=r"lr was 0\.1 and is now 0\.2"):
        run.start({"lr": 0.2, "recipe": {"milestones": (0.5, 0.7)}})
    with pytest.raises(InputError, match=r"recipe\.milestones was .* and is now \[0\.5\]"):
        run.start({"lr": 0.1, "recipe": {"milestones": (0.5,)}})


def test_a_finished_run_keeps_weights_and_result_but_no_checkpoint(run):
    run.save(state(1))
    assert not run.finished
    with pytest.raises(InputError, match=r"no result\.json"):
        _ = run.result
    run.finish({"top1": 12.5}, {"student": {"w": torch.ones(3)}, "losses": {}})
    assert run.finished and run.result == {"top1": 12.5}
    kept = {path.name for path in run.folder.iterdir()} - {".lock"}
    assert kept == {"config.json", "metrics.csv", "attention.npz", "student.safetensors", "result.json"}
    with pytest.raises(InputError, match="losses"):
        _ = run.loss_weights
    (run.folder / "result.json").write_text('{"top1": 12')
    with pytest.raises(InputError, match="damaged"):
        _ = run.result


def hold(folder, ready, done):
    with Run(folder):
        ready.set()
        done.wait(30)


def test_a_second_process_is_turned_away(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "r", ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(InputError, match="being trained by another process"), Run(tmp_path / "r"):
        pass
    done.set()
    other.join()
    with Run(tmp_path / "r"):  # free again
        pass


def test_a_full_disk_leaves_the_last_good_checkpoint(run):
    run.save(state(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(
            InputError, match=r"cannot write .*checkpoint: File too large; what was there before is kept"
        ):
            run.save(state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.load()["epoch"] == 1
    assert not list(run.folder.glob("*.part"))


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file"), Run(tmp_path / "file" / "run"):
        pass


def test_leftovers_of_a_killed_process_go(tmp_path):
    (tmp_path / "checkpoint.123.part").write_bytes(b"half")
    with Run(tmp_path):
        assert not list(tmp_path.glob("*.part"))


def test_write_atomically_replaces_whole_files(tmp_path):
    write_atomically(tmp_path / "new" / "a", "one")
    write_atomically(tmp_path / "new" / "a", b"two", keep=tmp_path / "new" / "b")
    assert (tmp_path / "new" / "a").read_text() == "two"
    assert (tmp_path / "new" / "b").read_text() == "one"


def test_environment_can_stand_beside_a_number():
    found = json.loads(json.dumps(environment("cpu")))
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert "cores" in found["device"]
