"""Loaded by test_cluster.py's processes: trains a run in plain Python, where papermill takes ten
seconds.

While there is a file `hold` in the process's folder for temporary files, a run waits when it has a
checkpoint. What ends it stands in `said`.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

TEMPORARY = Path(tempfile.gettempdir())


def papermill(notebook, written, parameters):
    if notebook != "train.ipynb":
        return [sys.executable, "-c", ""]
    return [sys.executable, __file__, json.dumps(parameters)]


def install():
    from kdnb.study import __main__ as study
    from kdnb.study import worker as process

    process.papermill = study.papermill = papermill


def dask_setup(server):
    install()


def main(parameters):
    from kdnb import InputError, Run, train
    from kdnb.training.step import Engine

    run, step = Run(**parameters), Engine.__call__

    def held(self, batch):
        while (TEMPORARY / "hold").exists() and (run.folder / "checkpoint").exists():
            time.sleep(0.02)
        return step(self, batch)

    Engine.__call__ = held
    try:
        train(run)
    except InputError as error:
        (TEMPORARY / "said").write_text(str(error))
        raise


if __name__ == "__main__":
    if sys.argv[1] == "study":
        from kdnb.study import __main__ as study

        install()
        sys.exit(study.main(sys.argv[2:]))
    main(json.loads(sys.argv[1]))
