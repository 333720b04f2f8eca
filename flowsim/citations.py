"""What to cite: the paper, flowsim, and where each method comes from, as BibTeX."""

from __future__ import annotations

from importlib.metadata import version

from flowsim.methods import Diffrax, GaussLegendre, GradientDescent, Method, Projected, Scipy

PAPER = """@inproceedings{min2023convergence,
  author    = {Hancheng Min and Ren{\\'e} Vidal and Enrique Mallada},
  title     = {On the Convergence of Gradient Flow on Multi-layer Linear Models},
  booktitle = {Proceedings of the 40th International Conference on Machine Learning},
  series    = {PMLR},
  volume    = {202},
  pages     = {24850--24887},
  year      = {2023},
}"""
FLOWSIM = f"""@software{{flowsim,
  author  = {{{{The flowsim developers}}}},
  title   = {{flowsim: gradient flow on multi-layer linear models}},
  version = {{{version("flowsim")}}},
}}"""
SOURCES = {
    "scipy": """@article{virtanen2020scipy,
  author  = {Pauli Virtanen and others},
  title   = {SciPy 1.0: Fundamental Algorithms for Scientific Computing in Python},
  journal = {Nature Methods},
  volume  = {17},
  pages   = {261--272},
  year    = {2020},
}""",
    "diffrax": """@phdthesis{kidger2021neural,
  author = {Patrick Kidger},
  title  = {On Neural Differential Equations},
  school = {University of Oxford},
  year   = {2021},
}""",
    "Dormand-Prince 8": """@book{hairer1993solving,
  author    = {Ernst Hairer and Syvert P. N{\\o}rsett and Gerhard Wanner},
  title     = {Solving Ordinary Differential Equations I: Nonstiff Problems},
  publisher = {Springer},
  year      = {1993},
}""",
    "Dormand-Prince 5": """@article{dormand1980family,
  author  = {John R. Dormand and Peter J. Prince},
  title   = {A family of embedded {R}unge-{K}utta formulae},
  journal = {Journal of Computational and Applied Mathematics},
  volume  = {6},
  pages   = {19--26},
  year    = {1980},
}""",
    "Bogacki-Shampine": """@article{bogacki1989pair,
  author  = {Przemyslaw Bogacki and Lawrence F. Shampine},
  title   = {A 3(2) pair of {R}unge-{K}utta formulas},
  journal = {Applied Mathematics Letters},
  volume  = {2},
  pages   = {321--325},
  year    = {1989},
}""",
    "Tsitouras": """@article{tsitouras2011runge,
  author  = {Charalampos Tsitouras},
  title   = {Runge-{K}utta pairs of order 5(4) satisfying only the first column simplifying assumption},
  journal = {Computers and Mathematics with Applications},
  volume  = {62},
  pages   = {770--775},
  year    = {2011},
}""",
    "Radau": """@book{hairer1996solving,
  author    = {Ernst Hairer and Gerhard Wanner},
  title     = {Solving Ordinary Differential Equations II: Stiff and Differential-Algebraic Problems},
  publisher = {Springer},
  year      = {1996},
}""",
    "BDF": """@article{shampine1997matlab,
  author  = {Lawrence F. Shampine and Mark W. Reichelt},
  title   = {The {MATLAB} {ODE} Suite},
  journal = {SIAM Journal on Scientific Computing},
  volume  = {18},
  pages   = {1--22},
  year    = {1997},
}""",
    "LSODA": """@article{petzold1983automatic,
  author  = {Linda Petzold},
  title   = {Automatic Selection of Methods for Solving Stiff and Nonstiff Systems of Ordinary Differential Equations},
  journal = {SIAM Journal on Scientific and Statistical Computing},
  volume  = {4},
  pages   = {136--148},
  year    = {1983},
}""",
    "Kvaerno": """@article{kvaerno2004singly,
  author  = {Anne Kv{\\ae}rn{\\o}},
  title   = {Singly Diagonally Implicit {R}unge-{K}utta Methods with an Explicit First Stage},
  journal = {BIT Numerical Mathematics},
  volume  = {44},
  pages   = {489--502},
  year    = {2004},
}""",
    "RKC": """@article{sommeijer1998rkc,
  author  = {B. P. Sommeijer and L. F. Shampine and J. G. Verwer},
  title   = {{RKC}: An explicit solver for parabolic {PDE}s},
  journal = {Journal of Computational and Applied Mathematics},
  volume  = {88},
  pages   = {315--326},
  year    = {1998},
}""",
    "geometric": """@book{hairer2006geometric,
  author    = {Ernst Hairer and Christian Lubich and Gerhard Wanner},
  title     = {Geometric Numerical Integration},
  publisher = {Springer},
  year      = {2006},
}""",
}
TABLEAUS = {
    "RK23": "Bogacki-Shampine",
    "RK45": "Dormand-Prince 5",
    "DOP853": "Dormand-Prince 8",
    "Radau": "Radau",
    "BDF": "BDF",
    "LSODA": "LSODA",
    "Bosh3": "Bogacki-Shampine",
    "Tsit5": "Tsitouras",
    "Dopri5": "Dormand-Prince 5",
    "Dopri8": "Dormand-Prince 8",
    "Kvaerno3": "Kvaerno",
    "Kvaerno4": "Kvaerno",
    "Kvaerno5": "Kvaerno",
}
"""A method's name -> its source, where it has one of its own."""


def citation(method: Method | None = None) -> str:
    """BibTeX entries for the paper, flowsim and, where it is given, the method: its library and its formula.

    >>> import flowsim as fs
    >>> [line for line in fs.citation(fs.Diffrax("Tsit5")).splitlines() if line.startswith("@")][2:]
    ['@phdthesis{kidger2021neural,', '@article{tsitouras2011runge,']
    """
    return "\n\n".join([PAPER, FLOWSIM, *(SOURCES[name] for name in _sources(method))])


def _sources(method: Method | None) -> list[str]:
    if method is None or isinstance(method, GradientDescent):
        return []
    if isinstance(method, Projected):
        return [*_sources(method.method), "geometric"]
    if isinstance(method, GaussLegendre):
        return ["geometric"]
    if not isinstance(method, (Scipy, Diffrax)):
        return ["RKC"]
    formula = TABLEAUS.get(method.name)
    return ["scipy" if isinstance(method, Scipy) else "diffrax", *([formula] if formula else [])]
