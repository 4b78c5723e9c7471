"""Which block taught which, and where the networks look: finished runs in, NumPy arrays out.

Every pass is without gradients, in eval mode and in float32. T and S count the blocks of teacher and student, shallow
to deep. Networks are called by their roles: teacher, baseline (the student without a teacher), distilled.
"""

from kdnb.analysis.networks import (
    Networks,
    load_networks,
    load_run,
    run_from_notebook,
    teacher_table,
)
from kdnb.analysis.survey import (
    Survey,
    by_class,
    choose_images,
    mistakes,
    one_a_pair,
    survey_images,
)
