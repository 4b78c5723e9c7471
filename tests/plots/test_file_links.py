"""Links from a notebook to the files of a run."""

from kdnb.plots import FileLinks


def test_links_are_relative_to_the_notebook_and_leave_out_what_lab_cannot_show(
    tmp_path, monkeypatch
):
    run = tmp_path / "outputs/runs/ce + afd"
    run.mkdir(parents=True)
    for name in ("result.json", "metrics.csv", "student.safetensors"):
        (run / name).touch()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    links = FileLinks(run, tmp_path / "empty")
    assert links._repr_markdown_() == (
        f"- `{run}`: [metrics.csv](../outputs/runs/ce%20%2B%20afd/metrics.csv), "
        "[result.json](../outputs/runs/ce%20%2B%20afd/result.json)\n"
        f"- `{tmp_path / 'empty'}`"
    )
    assert repr(links) == f"{run}\n{tmp_path / 'empty'}"
