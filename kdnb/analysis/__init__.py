"""Analysis of finished runs: which block teaches which, where networks look, what they predict.

Functions take runs or loaded networks and return NumPy arrays and pandas tables. Networks run
without gradients, in eval mode and in float32. They are called by their roles: teacher, baseline
(the student without a teacher) and distilled. T and S are the numbers of blocks of teacher and
student, from shallow to deep.
"""

from kdnb.analysis.finished import has_teacher, run_from_notebook
from kdnb.analysis.networks import Networks, load_networks, load_run
from kdnb.analysis.survey import (
    LinksByClass,
    Survey,
    choose_images,
    links_by_class,
    mistakes,
    one_per_class_pair,
    survey_images,
)
from kdnb.analysis.teacher_facts import teacher_table
