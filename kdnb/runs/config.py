"""What config.json says of a run, the check against it, and how a run gives way to another."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from kdnb.data.download import shorten_list
from kdnb.errors import InputError
from kdnb.runs import code
from kdnb.runs.files import damaged
from kdnb.runs.identity import training_facts
from kdnb.runs.lock import busy_message
from kdnb.runs.run import Run
from kdnb.runs.stored_names import REPLACED

FROM_IMAGES = ("classes", "damaged_images", "decoded_images")  # known when images are loaded


def make_config(run: Run) -> dict:
    """What config.json says of a run, as far as it follows from its description."""
    networks = (run.student, *run.teacher.split(","))
    used = code.definitions(run.terms, networks, run.dataset)
    config = {
        "run": run.identity,
        "preset": asdict(run.preset),
        "overrides": run.reported_overrides,
        "label": run.label,
        "options": code.options(run.terms),
        "code": code.hashes(used),
    }
    return json.loads(json.dumps(config))  # as it is read back: JSON has lists for tuples


def check_config_matches(run: Run, config: dict) -> None:
    """Raises InputError if the folder of a run holds another training, or one with other code.

    config: of `make_config`, with the names of the classes if they are known.
    """

    def facts(config: dict) -> dict:
        known = {name: config[name] for name in FROM_IMAGES if name in config}
        return training_facts(config) | known

    try:
        stored, current = facts(run.config), facts(config)
        check_same_photographs(run, stored, current)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(run.folder / "config.json", f"it lacks {error}") from None
    differences = [
        f"{name} was {stored[name]!r} and is now {value!r}"
        for name, value in current.items()
        if name in stored and stored[name] != value
    ]
    if differences:
        raise InputError(
            f"{run.folder} holds another run: {', '.join(differences)}, by its config.json; "
            "move it away or change back"
        )
    check_code_matches(run, config)


def check_same_photographs(run: Run, stored: dict, current: dict) -> None:
    """Raises InputError if the photographs of a run that was begun have changed since.

    Pixels are compared only if the same versions decoded them. What is compared here is removed
    from both dictionaries.
    """
    damaged = [facts.pop("damaged_images", None) for facts in (stored, current)]
    decoded = [facts.pop("decoded_images", None) for facts in (stored, current)]
    if None in damaged:
        return
    changed = [name for name in damaged[0] if name not in damaged[1]]
    if changed or len(damaged[0]) != len(damaged[1]):
        broken = [name for name in damaged[1] if name not in damaged[0]]
        what = "can be decoded" if changed else "cannot be decoded"
        raise InputError(
            f"{run.folder} was begun with other images: {shorten_list(changed or broken)} {what} "
            "now; restore them as they were, or train it anew with rerun=True"
        )
    decoders = [[text.partition(" ")[2] for text in split] for split in decoded]
    if decoders[0] == decoders[1] and decoded[0] != decoded[1]:
        raise InputError(
            f"{run.folder} was begun with other images: the photographs have the names and sizes "
            "of then, but other pixels; restore them as they were, or train it anew with rerun=True"
        )


def check_code_matches(run: Run, config: dict) -> None:
    """Raises InputError if a run was trained with other code, or with other values of options."""
    stored = run.config
    differences = [
        f"{name} ({old}, now {new})"
        for name, (old, new) in code.changed(stored.get("code", {}), config["code"]).items()
    ]
    differences += [
        f"option {name} of {loss} ({value!r}, now {values[name]!r})"
        for loss, values in config["options"].items()
        for name, value in stored.get("options", {}).get(loss, {}).items()
        if name in values and values[name] != value
    ]
    if differences:
        when = stored["machines"][-1]["started"]
        raise InputError(
            f"{run.folder} was {'finished' if run.done else 'begun'} with other code on {when}: "
            f"{', '.join(differences)}; rerun=True moves its folder to {REPLACED}/ and trains it "
            "anew; an option that is not at its default gives a run a folder of its own"
        )


def set_aside(run: Run, log: Callable[[str], None] = print) -> Run:
    """Move the folder of a run that is to be trained anew; returns the run without `rerun`.

    An unfinished run with the same code stays: it is continued.

    Raises InputError if another process is training the run.
    """
    if (run.folder / "config.json").is_file() and not is_continuable(run):
        if message := busy_message(run.folder):
            raise InputError(message)
        target = replaced_folder(run.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(run.folder, target)
        log(f"{run.name}: the run that was there is now in {target}")
    return run.with_changes(rerun=False)


def is_continuable(run: Run) -> bool:
    """Whether a run that was begun is unfinished and has the parameters and code of today."""
    try:
        check_config_matches(run, make_config(run))
    except InputError:
        return False
    return not run.done


def replaced_folder(folder: Path) -> Path:
    """Where the folder of a run is moved to: next to the folder of all runs, with the time."""
    name = f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    target = folder.parent.parent / REPLACED / name
    number = 1
    while target.exists():
        number += 1
        target = target.with_name(f"{name}-{number}")
    return target
