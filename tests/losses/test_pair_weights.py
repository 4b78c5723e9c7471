"""Mixes published for a pair of networks: pair_weights.csv."""

import pytest

from kdnb import DATASETS, METHODS, Run
from kdnb.losses.mix import canonical, parse
from kdnb.losses.pair_weights import pair_methods, read_rows
from kdnb.models import PAIRS, model_name


def test_every_row_is_a_mix_of_its_method_for_a_pair_of_networks():
    rows = read_rows()
    keys = [
        tuple(row[name] for name in ("method", "dataset", "teacher", "student")) for row in rows
    ]
    assert len(set(keys)) == len(keys)
    for row in rows:
        assert row["dataset"] in DATASETS and row["source"] and None not in row.values()
        assert model_name(row["teacher"]) == row["teacher"]
        assert model_name(row["student"]) == row["student"]
        losses = [term.loss for term in parse(row["mix"])]
        assert losses == [term.loss for term in parse(METHODS[row["method"]])]


def test_the_pair_that_the_methods_are_weighed_for_has_their_mixes():
    own = pair_methods("cifar100", "wrn_40_2", "wrn_16_2")
    assert set(own) == {"dkd", "reviewkd", "lskd"}
    for name, mix in own.items():
        assert canonical(parse(mix)) == canonical(parse(METHODS[name]))


@pytest.mark.parametrize("method", ["dkd", "reviewkd", "lskd"])
def test_the_study_of_all_pairs_has_published_mixes(method):
    """The pairs of the CRD paper without a published mix are these alone."""
    missing = {
        name for name, pair in PAIRS.items() if method not in pair_methods("cifar100", *pair)
    }
    assert (
        missing
        == {
            "dkd": {"resnet110-resnet20", "cifar_resnet50-cifar_vgg8"},
            "reviewkd": {
                "resnet110-resnet20",
                "cifar_vgg13-cifar_vgg8",
                "cifar_vgg13-cifar_mobilenetv2",
                "cifar_resnet50-cifar_mobilenetv2",
                "cifar_resnet50-cifar_vgg8",
            },
            "lskd": {
                "wrn_40_2-cifar_shufflenetv1",
                "resnet110-resnet20",
                "resnet32x4-cifar_shufflenetv1",
                "cifar_resnet50-cifar_vgg8",
            },
        }[method]
    )


def test_a_method_has_the_mix_of_the_pair_before_that_of_the_data_set(tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS["cifar100"].preset.methods, "dkd", "ce + dkd(T=3)")
    monkeypatch.setitem(DATASETS["cifar100"].preset.methods, "nkd", "ce + nkd(T=2)")

    def described(method, **fields):
        run = Run(dataset="cifar100", method=method, outputs=str(tmp_path), **fields)
        return run.method, run.label

    pair = {"teacher": "resnet56", "student": "resnet20"}
    assert described("dkd", **pair) == ("ce + dkd(beta=2.0)", "dkd")
    assert described("nkd", **pair) == ("ce + nkd(T=2.0)", "nkd")
    assert described("vid", **pair) == ("ce + vid", "vid")
    # Without a mix for the pair: the preset's.
    assert described("dkd", student="wrn_10_2") == ("ce + dkd(T=3.0)", "dkd")
    assert described("ce + dkd(beta=2)", student="wrn_10_2")[1] == "ce + dkd(beta=2.0)"


def test_a_run_with_the_mix_of_another_pair_stays_readable(tmp_path):
    """It was named so before the pair had a mix of its own."""
    pair = {"teacher": "resnet56", "student": "resnet20", "outputs": str(tmp_path)}
    run = Run(dataset="cifar100", method="ce + dkd", **pair)
    assert run.method == run.label == "ce + dkd"
    assert Run(dataset="cifar100", method=run.method, **pair) == run
    assert run != Run(dataset="cifar100", method="dkd", **pair)


def test_runs_of_pairs_without_an_entry_keep_their_names():
    run = Run(dataset="digits", method="dkd")
    assert run.label == "dkd" and run.methods == run.preset.methods
