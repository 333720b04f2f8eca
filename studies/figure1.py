"""How fast does gradient flow on three-layer linear networks converge, and how much of that does Theorem 2 certify?

The set-up is that of Figure 1 of Min, Vidal, Mallada (ICML 2023). Left: the certified rate Delta* (per unit gamma)
over random draws of three initializations; it grows with the width only where the layers start out imbalanced.
Middle and right: gradient descent at step size 5e-6 (lines), the flow at the same times (circles), and the bound
exp(-gamma Delta* t) (dashed). The bound holds at every step. With one input it is about two thirds of the rate seen,
with five about a fifth. The printed figure does not follow from its stated set-up; the
closing lines say in what, and the table lists its values beside ours. Takes under a minute.

    python studies/figure1.py --out studies
"""

import argparse
import sys
from pathlib import Path

from flowsim.reproduce import Setup, reproduce, table

SMALL = Setup(widths=((10, 20), (20, 30)), box_width=20, draws=10, seeds=5, step_size=1e-4, fall=1e-4)


def main() -> None:
    """Draw the figure into a folder and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="tiny networks, seconds")
    arguments = parser.parse_args()
    setup = SMALL if arguments.small else Setup()
    result = reproduce(arguments.out, arguments.seed, setup, note=lambda text: print(text, file=sys.stderr))
    print(table(result))


if __name__ == "__main__":
    main()
