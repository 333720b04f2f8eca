"""A network larger than its memory allowance: (1, 20000, 20000, 1), 3.2 GB on disk, simulated memory-mapped.

The layers are written in blocks. The peak of the process's private memory (RssAnon: file pages aside) is sampled from
/proc every 5 ms, so this runs on Linux.

    python benchmarks/memory_mapped.py [--width 20000]
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

import flowsim as fs
from flowsim.files import read_weights

BLOCK = 500


class PeakPrivateMemory:
    """Samples RssAnon while the block runs; `megabytes` is the greatest seen."""

    def __enter__(self) -> "PeakPrivateMemory":
        self.megabytes, self.going = 0.0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.going = False
        self.thread.join()

    def _watch(self) -> None:
        while self.going:
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.megabytes = max(self.megabytes, int(fields["RssAnon"].split()[0]) / 1024)
            time.sleep(0.005)


def write_layers(folder: Path, width: int) -> None:
    """fan_in weights with n = m = 1, the hidden layer written block by block."""
    rng = np.random.default_rng(0)
    np.save(folder / "W1.npy", rng.standard_normal((1, width)))
    hidden = np.lib.format.open_memmap(folder / "W2.npy", mode="w+", dtype=np.float64, shape=(width, width))
    for start in range(0, width, BLOCK):
        rows = min(BLOCK, width - start)
        hidden[start : start + rows] = rng.standard_normal((rows, width)) / np.sqrt(width)
    hidden.flush()
    np.save(folder / "W3.npy", rng.standard_normal((width, 1)) / np.sqrt(width))
    np.save(folder / "Y.npy", np.array([[2.0]]))


def main() -> None:
    """Write, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=20_000)
    width = parser.parse_args().width
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_layers(folder, width)
        with PeakPrivateMemory() as peak:
            begun = time.perf_counter()
            network = read_weights(folder)
            run = fs.simulate(fs.Problem(fs.SquaredLoss([[2.0]]), network), t1=10.0, stop_loss=1e-8)
            seconds = time.perf_counter() - begun
            drift = run.imbalance_drift.max()
        print(run.summary())
        print(
            f"{(folder / 'W2.npy').stat().st_size / 1e9:.1f} GB on disk, peak private memory {peak.megabytes:.0f} MB,"
            f" {seconds:.1f} s with reading and checking, drift {drift:.1e}"
        )


if __name__ == "__main__":
    main()
