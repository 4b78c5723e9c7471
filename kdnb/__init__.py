"""kdnb: attention-based feature distillation (Ji, Heo, Park, AAAI 2021), redone so that anyone can rerun it."""

__version__ = "0.1.0"
