"""Finished runs -> one DataFrame, Markdown tables and what plots draw; `python -m kdnb.results`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curves": ["curves_by_protocol", "links_by_protocol", "run_curves"],
        "frame": ["from_notebook", "load_frame"],
    },
)
