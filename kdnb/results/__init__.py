"""Finished runs -> one DataFrame, Markdown tables and what plots draw; `python -m kdnb.results`."""

from kdnb.results.curves import curves_by_protocol, links_by_protocol, run_curves
from kdnb.results.frame import from_notebook, load_frame
