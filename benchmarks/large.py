"""Networks larger than the memory: (1, 10^9, 10^9, 1) drawn in compressed form, (1, 20000, 20000, 1) mapped from disk.

The layers on disk (3.2 GB) are written in blocks. The peak of the process's private memory (RssAnon: file pages aside)
is sampled from /proc every 5 ms, so this runs on Linux.

    python benchmarks/large.py [--width 20000]
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


def drawn(width: int = 10**9) -> None:
    """Gradient flow and gradient descent on a network that no memory holds."""
    with PeakPrivateMemory() as peak:
        begun = time.perf_counter()
        network = fs.sample_compressed("fan_out", (1, width, width, 1), seed=0)
        problem = fs.Problem(fs.SquaredLoss([[2.0]]), network)
        flow = fs.simulate(problem, t1=1e-6, stop_loss=1e-8)
        end = float(flow.time[-1])
        descent = fs.simulate(problem, fs.GradientDescent(end / 3000), t1=end)
        seconds = time.perf_counter() - begun
    print(flow.summary())
    print(
        f"dims {network.dims}: flow {flow.stats['seconds']:.3f} s, {descent.stats['steps']} steps of gradient descent"
        f" {descent.stats['seconds']:.3f} s (loss {descent.loss[-1]:.1e}), {seconds:.2f} s in all, peak private memory"
        f" {peak.megabytes:.0f} MB\n"
    )


def mapped(width: int) -> None:
    """Write the layers, simulate them memory-mapped."""
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


def main() -> None:
    """Both, in this order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=20_000)
    width = parser.parse_args().width
    drawn()
    mapped(width)


if __name__ == "__main__":
    main()
