"""flowsim: gradient flow on multi-layer linear models, its invariants and its certified convergence rates.

In docstrings [MVM23] is the paper that flowsim implements, and corrects: H. Min, R. Vidal, E. Mallada, "On the
Convergence of Gradient Flow on Multi-layer Linear Models", ICML 2023, PMLR 202, pages 24850-24887.

The public names stand in __init__.pyi; each is imported when it is first used, so that `import flowsim` is quick.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = ["__version__", *_names]
