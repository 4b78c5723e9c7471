"""The grid of the study: which runs there are, and how each is recognised once it is finished. Imports no torch."""

from __future__ import annotations

import ast
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from kdnb.errors import InputError, choose
from kdnb.names import model_name
from kdnb.parameters import data_folder
from kdnb.recipes import recipe
from kdnb.runs import Run, flat

__all__ = ["METHODS", "NOTEBOOKS", "ROOT", "Task", "finished", "notebook_parameters", "plan", "typed"]

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
METHODS = {"teacher": "train.ipynb", "plain": "train.ipynb", "kd": "distill.ipynb", "afd": "distill.ipynb"}
MANAGED = {"dataset": "--dataset", "seed": "--seeds", "epochs": "--epochs", "outputs": "--outputs"}
MANAGED["baseline"] = "--methods"


@dataclass(frozen=True)
class Task:
    """One run of the grid: the notebook's parameters that make it, and how its result.json is recognised."""

    dataset: str
    method: str
    seed: int
    parameters: dict[str, object]  # for papermill's -p
    settings: dict[str, object]  # every parameter of the notebook, as it will be
    label: str  # what messages and its log call it
    needs: str = ""  # label of the task that has to be finished first

    def wanted(self) -> dict[str, object]:
        """The entries of a result.json that this run has, flat. Raises InputError for what no recipe allows."""
        s, taught = self.settings, self.method in ("kd", "afd")
        changes = {n: s[n] for n in ("epochs", "batch_size", "lr", "image_size", "teacher", "student")}
        own = recipe(self.dataset, **changes)
        network = own.teacher if self.method == "teacher" else own.student
        entries = asdict(own) | {"student": network, "teacher": own.teacher if taught else None}
        out = {"dataset": self.dataset, "model": network, "seed": self.seed, "train_limit": s["train_limit"]}
        out |= {"recipe": json.loads(json.dumps(entries))}
        out |= {"folder": photographs(s)} if self.dataset == "folder" else {}
        out |= {"temperature": s["temperature"], "qk_dim": s["qk_dim"]} if taught else {"method": "plain"}
        # "auto" is what the machine makes of it: a run of another machine is the same run of the study.
        out |= {"precision": s["precision"]} if s["precision"] != "auto" else {}
        out |= {"device_type": s["device"].split(":")[0]} if s["device"] != "auto" else {}
        return flat(out | ({"compile": s["compile"] == "on"} if s["compile"] != "auto" else {}))

    def made(self, result: dict) -> bool:
        """Whether `result`, of a result.json, is this run's."""
        has = flat(result)
        if any(has.get(name) != value for name, value in self.wanted().items()):
            return False
        if self.method in ("teacher", "plain"):
            return True
        losses = {"kd": self.settings["alpha"], "afd": self.settings["beta"]}
        if any(sentence.startswith("kd ") for sentence in result["left_out"]):
            losses["kd"] = 0.0
        return result["losses"] == {k: v for k, v in losses.items() if v} and self.taught_by(has)

    def taught_by(self, has: dict) -> bool:
        """Whether the teacher of a result is the one that this task would take."""
        origin, given, teacher = has["teacher_weights.from"], self.settings["teacher_weights"], has["recipe.teacher"]
        images = self.dataset + (f"={photographs(self.settings)}" if self.dataset == "folder" else "")
        trained = f"{images}-{teacher}-plain-", f"seed={self.settings['teacher_seed']}/student.safetensors"
        here = origin.startswith(trained[0]) and origin.endswith(trained[1])
        if given == "none":
            return here
        if given:
            return origin == f"{Path(given).parent.name}/{Path(given).name}"
        return here or origin in ("imagenet", f"teachers/{teacher}-{self.dataset}.safetensors")


def photographs(settings: dict[str, object]) -> str:
    """What runs of the data set "folder" call their images: the name of the folder that holds them."""
    return data_folder(settings["data_root"]).resolve().name


def notebook_parameters(name: str) -> dict[str, object]:
    """The parameters of a notebook and their defaults, from its cell tagged "parameters"."""
    try:
        cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    except OSError:
        raise InputError(f"no {NOTEBOOKS / name}: the study runs from a checkout of the project") from None
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    return {n.target.id: ast.literal_eval(n.value) for n in ast.parse(source).body if isinstance(n, ast.AnnAssign)}


def typed(pairs: list[list[str]], defaults: dict[str, object]) -> dict[str, object]:
    """papermill's `-p name value` as values of the notebook's types. Raises InputError."""
    out = {}
    for name, text in pairs:
        choose("parameter", name, defaults)
        if name in MANAGED:
            raise InputError(f"-p {name}: the study sets it itself, by {MANAGED[name]}")
        kind = type(defaults[name])
        try:
            out[name] = {"True": True, "False": False}[text] if kind is bool else kind(text)
        except (ValueError, KeyError):
            what = {int: "a whole number", float: "a number", bool: "True or False"}[kind]
            raise InputError(f"-p {name} {text}: it must be {what}") from None
        if name in ("teacher", "student") and text:
            out[name] = model_name(text)
        if name in ("teacher_weights", "data_root") and text not in ("", "none"):  # processes have another folder
            out[name] = str(Path(text).expanduser().resolve())
    return out


def plan(
    datasets: list[str], methods: list[str], seeds: list[int], outputs: Path, extra: dict[str, object]
) -> tuple[list[Task], list[str]]:
    """The runs of the study, those that others need first; and sentences on what was left out.

    extra: parameters of the notebooks beside their defaults. Raises InputError.
    """
    tasks, said = {}, []
    known = {name: notebook_parameters(name) for name in set(METHODS.values())}
    defaults = known["distill.ipynb"]

    def add(dataset: str, method: str, seed: int, needs: str = "", **own) -> str:
        chosen = {"dataset": dataset, "seed": seed, **extra, **own, "outputs": str(outputs)}
        chosen = {name: value for name, value in chosen.items() if name in known[METHODS[method]]}
        words = [f"{name}={Path(str(value)).name}" for name, value in extra.items() if name in set(chosen) - set(own)]
        label = "-".join([dataset, method, *words, f"seed={seed}"])
        task = Task(dataset, method, seed, chosen, defaults | chosen, label, needs)
        task.wanted()  # raises for what no recipe allows
        tasks.setdefault(task.label, task)
        return task.label

    for dataset in datasets:
        own = recipe(dataset, teacher=extra.get("teacher"), student=extra.get("student"))
        weights, teacher_seed, needs = extra.get("teacher_weights", ""), extra.get("teacher_seed", 0), ""
        kept = outputs / "teachers" / f"{own.teacher}-{dataset}.safetensors"
        trained_here = weights == "none" or (not weights and not own.pretrained and not kept.is_file())
        taught = [m for m in methods if m in ("kd", "afd")]
        if "kd" in taught and not weights and own.pretrained:
            said.append(f"{dataset}: kd is left out, its teacher comes with the classes of ImageNet")
            taught.remove("kd")
        if "teacher" in methods or (taught and trained_here):
            needs = add(dataset, "teacher", teacher_seed, **alone(own.teacher, teacher_seed))
        for seed in seeds:
            if "plain" in methods:
                add(dataset, "plain", seed, **alone(own.student, seed))
            for method in taught:
                add(dataset, method, seed, needs, baseline=False, **({"beta": 0.0} if method == "kd" else {}))
    if not tasks:
        raise InputError("; ".join([*said, "nothing is left to run"]))
    return list(tasks.values()), said


def alone(network: str, seed: int) -> dict[str, object]:
    """Parameters by which train.ipynb trains one network and no other: as its teacher and its student, from one seed.

    So a plain student waits for no teacher, and needs none.
    """
    return {"teacher": network, "student": network, "teacher_weights": "none", "teacher_seed": seed}


def finished(outputs: Path, task: Task) -> Run | None:
    """The finished run of a task, recognised by what its result.json says; a damaged one is none."""
    for path in sorted((outputs / "runs").glob("*/result.json")):
        run = Run(path.parent)
        try:
            if task.made(run.result):
                return run
        except (InputError, KeyError, TypeError, ValueError, AttributeError, OSError):
            continue  # results.ipynb names it
    return None
