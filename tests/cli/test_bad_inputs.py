"""Bad inputs: each gives exit code 2 and one sentence, prints nothing else, makes no file, and runs no foreign code."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
from safetensors.numpy import save as safe

import flowsim as fs
from flowsim import checks, cli, files

GOOD = {"W1": np.ones((3, 4)), "W2": np.ones((4, 5)), "W3": np.ones((5, 2)), "Y": np.ones((3, 2))}
LAYERS = {"0.weight": np.ones((4, 3)), "1.weight": np.ones((2, 4))}
DEEP = 100_000


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path):
    """A machine of 16 GiB, in an empty folder."""
    monkeypatch.setattr(checks, "memory_bytes", lambda: 2**34)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def good(tmp_path):
    np.savez("good.npz", **GOOD)
    np.savez("m.npz", X=np.ones(3))
    return tmp_path / "good.npz"


def assert_refused(capsys, words, *arguments):
    """Exit code 2, nothing printed, one sentence with the words, no file made."""
    before = sorted(os.walk("."))
    code = cli.main([str(argument) for argument in arguments])
    printed, err = capsys.readouterr()
    assert code == 2, err
    assert printed == ""
    sentence = err[err.index("Error: ") :]
    assert words in sentence
    assert sentence.count("Error: ") == 1
    assert all(line.startswith("  ") for line in sentence.splitlines()[1:]), "a list of mistakes is indented"
    assert "Traceback" not in err
    assert "Internal" not in err
    assert sorted(os.walk(".")) == before


# Makers of files


def npz(**changes):
    """The good arrays, changed; None leaves one out."""
    kept = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    return lambda path: np.savez(path, **kept)


def content(data):
    return lambda path: path.write_bytes(data)


def link(target):
    return lambda path: path.symlink_to(target)


def npy_bytes(array=None, shape=None, descr="<f8", body=b"0" * 64):
    """An .npy stream, or one whose header says something else than its body."""
    stream = io.BytesIO()
    if shape is None:
        np.save(stream, array, allow_pickle=True)
        return stream.getvalue()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + body


def members(entries, compression=zipfile.ZIP_DEFLATED, declared=None):
    """A zip of (name, bytes); `declared` overwrites the size that its directory tells."""

    def make(path):
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
            warnings.simplefilter("ignore")  # a name twice
            for name, data in entries:
                archive.writestr(name, data)
            if declared:
                archive.filelist[0].file_size = declared

    return make


class Evil:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


def evil_npz(path):
    np.savez(path, W1=np.array([[Evil(path.parent / "owned")]], dtype=object), W2=GOOD["W2"])


def evil_pt(path):
    pytest.importorskip("torch").save({"0.weight": Evil(path.parent / "owned")}, path)


def evil_pickle(path):
    path.write_bytes(pickle.dumps(Evil(path.parent / "owned")))


def torch_module(path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 4), path)


def torch_cut(path):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(value) for name, value in LAYERS.items()}, path)
    path.write_bytes(path.read_bytes()[:-40])


def torch_packed(path):
    """A checkpoint whose records are deflated, so that they may unpack to anything."""
    torch = pytest.importorskip("torch")
    torch.save({"0.weight": torch.zeros(1000, 1000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    members(entries)(path)


def folder(**made):
    """A folder with W1.npy, ...: arrays, or functions that make the file."""

    def make(path):
        path.mkdir()
        for name, value in made.items():
            place = path / f"{name}.npy"
            value(place) if callable(value) else np.save(place, value, allow_pickle=True)

    return make


def outside(place):
    """A link out of the folder."""
    np.save(place.parent.parent / "secret.npy", GOOD["W2"])
    place.symlink_to("../secret.npy")


def lying_safetensors(path):
    header = json.dumps({"W1": {"dtype": "F64", "shape": [10**6, 10**6], "data_offsets": [0, 8 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"0" * 64)


SAFE = safe(LAYERS)
WEIGHTS = {
    "chain": ("w.npz", npz(W2=np.ones((5, 4))), "must chain"),
    "empty layer": ("w.npz", npz(W2=np.ones((4, 0))), "must not be empty"),
    "vector": ("w.npz", npz(W2=np.ones(4)), "must be a matrix"),
    "scalar": ("w.npz", npz(W2=np.array(1.0)), "must be a matrix"),
    "stack": ("w.npz", npz(W2=np.ones((1, 4, 5))), "must be a matrix"),
    "complex": ("w.npz", npz(W2=1j * np.ones((4, 5))), "real numbers"),
    "text": ("w.npz", npz(W2=np.array([["a"]])), "real numbers"),
    "dates": ("w.npz", npz(W2=np.zeros((4, 5), "M8[s]")), "real numbers"),
    "records": ("w.npz", npz(W2=np.zeros((4, 5), [("a", "f8"), ("b", "i4")])), "real numbers"),
    "objects": ("w.npz", npz(W2=np.array([[None]], dtype=object)), "never loaded"),
    "nan": ("w.npz", npz(W2=np.full((4, 5), np.nan)), "finite"),
    "infinite": ("w.npz", npz(W2=np.full((4, 5), np.inf)), "finite"),
    "target shape": ("w.npz", npz(Y=np.ones((2, 3))), "3 x 2"),
    "no target": ("w.npz", npz(Y=None), "--target"),
    "missing layer": ("w.npz", npz(W2=None), "all of W1 to W3"),
    "lower case": ("w.npz", lambda p: np.savez(p, w1=np.ones((3, 2)), w2=np.ones((2, 2))), "w1, w2; rename them"),
    "bias": ("w.npz", npz(b1=np.ones(4)), "layers without biases, but it holds b1"),
    "no layers": ("w.npz", lambda p: np.savez(p, A=np.ones(3)), "W1, W2"),
    "other digits": ("w.npz", lambda p: np.savez(p, **{"W²": np.ones(3), "W" + "9" * 200: np.ones(3)}), "W1, W2"),
    "one layer": ("w.npz", lambda p: np.savez(p, W1=np.ones((3, 2)), Y=np.ones((3, 2))), "at least two layers"),
    "scale": ("w.npz", npz(scale=np.array(-1.0)), "scale"),
    "scale of text": ("w.npz", npz(scale=np.array("big")), "scale"),
    "scale of many": ("w.npz", npz(scale=np.ones(3)), "scale"),
    "recipe": ("w.npz", npz(recipe=np.array("{")), "recipe is damaged"),
    "deep recipe": ("w.npz", npz(recipe=np.array("[" * DEEP)), "recipe is damaged"),
    "recipe beyond memory": (
        "w.npz",
        npz(
            recipe=np.array(
                '{"scheme": "ntk", "dims": [3, 1000000000, 1000000000, 2], "seed": 0, "scale": 1, "steps": 9000000000}'
            )
        ),
        "GiB",
    ),
    "lying header": ("w.npz", members([("W1.npy", npy_bytes(shape=(10**6, 10**6)))]), "declares"),
    "negative shape": ("w.npz", members([("W1.npy", npy_bytes(shape=(-2, -2)))]), "damaged"),
    "overflowing shape": ("w.npz", members([("W1.npy", npy_bytes(shape=(0, 2**70)))]), "damaged"),
    "wide dtype": ("w.npz", members([("W1.npy", npy_bytes(shape=(2, 2), descr="|V0"))]), "not a readable"),
    "deep header": ("w.npz", members([("W1.npy", b"\x93NUMPY\x01\x00\x40\x1f" + b"(" * 8000)]), "not a readable"),
    "pickle of a member": ("w.npz", evil_npz, "never loaded"),
    "bomb": ("w.npz", members([("W1.npy", npy_bytes(GOOD["W1"]))], declared=2**34), "must unpack to at most"),
    "size that lies": ("w.npz", members([("W1.npy", npy_bytes(GOOD["W1"]))], declared=200), "truncated"),
    "path up": ("w.npz", members([("../W1.npy", npy_bytes(GOOD["W1"]))]), "is a path"),
    "absolute path": ("w.npz", members([("/tmp/W1.npy", npy_bytes(GOOD["W1"]))]), "is a path"),
    "path of Windows": ("w.npz", members([("C:\\W1.npy", npy_bytes(GOOD["W1"]))]), "is a path"),
    "a name twice": ("w.npz", members([("W1.npy", npy_bytes(GOOD["W1"]))] * 2), "twice"),
    "another packing": ("w.npz", members([("W1.npy", npy_bytes(GOOD["W1"]))], zipfile.ZIP_LZMA), "np.savez"),
    "zip of nothing": ("w.npz", members([]), "W1, W2"),
    "cut": ("w.npz", lambda p: (npz()(p), p.write_bytes(p.read_bytes()[:-200])), "truncated"),
    "hello": ("w.npz", content(b"hello"), "must be an .npz file"),
    "nothing": ("w.npz", content(b""), "must be an .npz file"),
    "missing": ("w.npz", lambda p: None, "does not exist"),
    "pipe": ("w.npz", os.mkfifo, "pipe or a device"),
    "device": ("w.npz", link("/dev/zero"), "pipe or a device"),
    "circle": ("w.npz", link("w.npz"), "cannot be read"),
    "dangling": ("w.npz", link("nowhere"), "does not exist"),
    "folder of nothing": ("w", folder(), "W1, W2"),
    "folder with a link out": ("w", folder(W1=GOOD["W1"], W2=outside), "leads out of its folder"),
    "folder with a device": ("w", folder(W1=GOOD["W1"], W2=link("/dev/zero")), "leads out of its folder"),
    "folder with a pipe": ("w", folder(W1=GOOD["W1"], W2=os.mkfifo), "pipe or a device"),
    "folder with a circle": ("w", folder(W1=link("W1.npy")), "cannot be read"),
    "folder with objects": ("w", folder(W1=np.array([[None]], dtype=object)), "never loaded"),
    "folder with nonsense": ("w", folder(W1=content(b"nonsense")), "not a readable"),
    "folder with a header that lies": ("w", folder(W1=content(npy_bytes(shape=(99, 99)))), "declares"),
    "safetensors of nothing": ("m.safetensors", content(b""), "must be a .safetensors file"),
    "safetensors cut": ("m.safetensors", content(SAFE[:-8]), "must be a .safetensors file"),
    "safetensors that lie": ("m.safetensors", lying_safetensors, "must be a .safetensors file"),
    "safetensors with a long header": ("m.safetensors", content(b"\xff" * 64), "must be a .safetensors file"),
    "safetensors with a deep header": (
        "m.safetensors",
        content(struct.pack("<Q", DEEP) + b"[" * DEEP),
        "must be a .safetensors file",
    ),
    "safetensors that never end": ("m.safetensors", link("/dev/zero"), "pipe or a device"),
    "pickle as .pt": ("m.pt", evil_pickle, "save model.state_dict()"),
    "pickle within .pt": ("m.pt", evil_pt, "never loaded"),
    "module": ("m.pt", torch_module, "never loaded"),
    ".pt cut": ("m.pt", torch_cut, "truncated"),
    ".pt packed": ("m.pt", torch_packed, "as torch.save does"),
    ".npz as .pt": ("m.pt", lambda p: (npz()("g.npz"), os.rename("g.npz", p)), "must be a PyTorch file"),
    ".pt of nothing": ("m.pth", content(b""), "save model.state_dict()"),
    ".pt that never ends": ("m.pt", link("/dev/zero"), "pipe or a device"),
    "csv": ("w.csv", content(b"1,2\n"), "must be an .npz file"),
}


@pytest.mark.parametrize("case", sorted(WEIGHTS))
def test_weights(case, capsys, tmp_path):
    name, make, words = WEIGHTS[case]
    make(tmp_path / name)
    if name.endswith((".pt", ".pth")) and find_spec("torch") is None:
        words = "pip install torch"
    assert_refused(capsys, words, "simulate", name, "--t1", 1, "--out", "run.nc", "--json")


TARGETS = {
    "missing": ("y.npy", lambda p: None, "does not exist"),
    "text": ("y.npy", content(b"hello"), "not a readable .npy"),
    "cut": ("y.npy", content(npy_bytes(GOOD["Y"])[:-8]), "truncated"),
    "objects": ("y.npy", content(npy_bytes(np.array([[None]], dtype=object))), "never loaded"),
    "pipe": ("y.npy", os.mkfifo, "pipe or a device"),
    "shape": ("y.npy", content(npy_bytes(np.ones((2, 2)))), "3 x 2"),
    "no Y": ("y.npz", lambda p: np.savez(p, X=np.ones(3)), "as key Y"),
    "empty csv": ("y.csv", content(b""), "it is empty"),
    "names alone": ("y.csv", content(b"a,b\n"), "it is empty"),
    "ragged csv": ("y.csv", content(b"1,2\n3\n5,6\n"), "the number of columns changed"),
    "words in a csv": ("y.csv", content(b"1,2\n3,four\n5,6\n"), "could not convert"),
    "gap in a csv": ("y.csv", content(b"1,2\n3,\n5,6\n"), "could not convert"),
    "nan in a csv": ("y.csv", content(b"1,2\n3,nan\n5,6\n"), "finite"),
    "too large for float64": ("y.csv", content(b"1,2\n3,1e999\n5,6\n"), "finite"),
    "names that do not fit": ("y.csv", content(b"a,b,c\n1,2\n"), "name each of its 2 columns"),
    "UTF-16": ("y.csv", content("1,2\n3,4\n5,6\n".encode("utf-16")), "UTF-8"),
    "semicolons": ("y.csv", content(b"1;2\n3;4\n5;6\n"), "could not convert"),
    "zeros": ("y.csv", content(b"\0" * 100), "numbers"),
    "csv that never ends": ("y.csv", link("/dev/zero"), "pipe or a device"),
}


@pytest.mark.parametrize("case", sorted(TARGETS))
def test_targets(case, capsys, good, tmp_path):
    name, make, words = TARGETS[case]
    make(tmp_path / name)
    assert_refused(capsys, words, "simulate", good, "--t1", 1, "--target", name, "--out", "run.nc", "--json")


DATA = {
    "missing": ("d.npz", lambda p: None, "does not exist"),
    "no X": ("d.npz", lambda p: np.savez(p, Y=np.ones((3, 2))), "as X and Y"),
    "rows": ("d.npz", lambda p: np.savez(p, X=np.ones((4, 3)), Y=np.ones((5, 2))), "rows"),
    "columns": ("d.npz", lambda p: np.savez(p, X=np.ones((4, 2)), Y=np.ones((4, 2))), "2 x 2"),
    "nan": ("d.npz", lambda p: np.savez(p, X=np.full((4, 3), np.nan), Y=np.ones((4, 2))), "finite"),
    "one array": ("d.npy", content(npy_bytes(GOOD["Y"])), "use .npz or .csv"),
    "no names": ("d.csv", content(b"1,2,3\n"), "begin with a line of names"),
    "no targets": ("d.csv", content(b"a,b\n1,2\n"), "beginning with y"),
    "targets alone": ("d.csv", content(b"y1,y2\n1,2\n"), "beginning with y"),
}


@pytest.mark.parametrize("case", sorted(DATA))
def test_data(case, capsys, good, tmp_path):
    name, make, words = DATA[case]
    make(tmp_path / name)
    assert_refused(capsys, words, "certify", good, "--data", name)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of a run."""
    path = tmp_path_factory.mktemp("runs") / "run.nc"
    fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_in((2, 4, 3, 1), seed=0)), t1=0.1).save(path)
    return path.read_bytes()


def edited(change):
    """A run with its HDF5 file changed."""

    def make(path):
        with h5py.File(path, "r+") as file:
            change(file)

    return make


def configured(**changes):
    """A run with other entries in its configuration; None leaves one out."""

    def change(file):
        kept = {**json.loads(file.attrs["flowsim"]), **changes}
        file.attrs["flowsim"] = json.dumps({key: value for key, value in kept.items() if value is not None})

    return edited(change)


def replaced(name, make):
    def change(file):
        del file[name]
        make(file)

    return edited(change)


def bomb(file):
    """A billion numbers that were never written."""
    file.create_dataset("loss", shape=(10**12,), dtype="f8", chunks=(10**6,))


def elsewhere(file):
    file.create_dataset("loss", shape=(4,), dtype="f8", external=[("/etc/passwd", 0, 32)])


RUNS = {
    "missing": (lambda p: p.unlink(), "does not exist"),
    "nothing": (content(b""), "NetCDF-4"),
    "text": (content(b"hello"), "NetCDF-4"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-3000]), "NetCDF-4"),
    "signature alone": (content(b"\x89HDF\r\n\x1a\n" + b"0" * 50), "NetCDF-4"),
    "pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "pipe or a device"),
    "device": (lambda p: (p.unlink(), p.symlink_to("/dev/zero")), "pipe or a device"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "it is a folder"),
    "foreign": (edited(lambda f: f.attrs.__delitem__("flowsim")), "damaged or foreign"),
    "no JSON": (edited(lambda f: f.attrs.__setitem__("flowsim", "{")), "damaged or foreign"),
    "deep JSON": (edited(lambda f: f.attrs.__setitem__("flowsim", "[" * 60_000)), "damaged or foreign"),
    "number": (edited(lambda f: f.attrs.__setitem__("flowsim", 3)), "damaged or foreign"),
    "link out": (replaced("loss", lambda f: f.__setitem__("loss", h5py.ExternalLink("/tmp/x.nc", "/a"))), "is a link"),
    "data elsewhere": (replaced("loss", elsewhere), "is elsewhere"),
    "bomb": (replaced("loss", bomb), "more than it can hold"),
    "variable missing": (edited(lambda f: f.__delitem__("excess_loss")), "damaged"),
    "dims": (configured(dims=[2, 10**9, 10**9, 1]), "damaged or foreign"),
    "dims of text": (configured(dims="wide"), "damaged or foreign"),
    "status": (configured(status="fine"), "`status`"),
    "method": (configured(method={"family": "Magic"}), "damaged or foreign"),
    "tolerance": (configured(method={"family": "Scipy", "rtol": -1}), "`rtol`"),
    "loss": (configured(loss="os"), "damaged or foreign"),
    "loss of another kind": (configured(loss="LossConstants"), "damaged or foreign"),
    "statistics": (configured(stats={"steps": 3}), "damaged or foreign"),
    "statistics of text": (configured(stats=dict.fromkeys(("steps", "seconds"), "x")), "damaged or foreign"),
    "no reduction": (configured(reduction=None), "damaged or foreign"),
    "times": (edited(lambda f: f["time"].__setitem__(3, -1.0)), "damaged or foreign"),
    "nan times": (edited(lambda f: f["step_time"].__setitem__(1, np.nan)), "damaged or foreign"),
}


@pytest.mark.parametrize("case", sorted(RUNS))
def test_runs(case, saved, capsys, tmp_path):
    make, words = RUNS[case]
    (tmp_path / "run.nc").write_bytes(saved)
    make(tmp_path / "run.nc")
    assert_refused(capsys, words, "diagnose", "run.nc", "--json")


SWEEP = "[sweep]\ndims = [[2, 5, 1]]\nseeds = 2\nt1 = 1.0\n"
SPECS = {
    "missing": (lambda p: None, "does not exist"),
    "nothing": (content(b""), "sweep: must be given"),
    "no TOML": (content(b"[sweep"), "must be TOML"),
    "no text": (content(b"\xff\xfe\x00"), "UTF-8"),
    "deep": (content(b"a = " + b"[" * DEEP), "must be TOML"),
    "pipe": (os.mkfifo, "pipe or a device"),
    "device": (link("/dev/zero"), "pipe or a device"),
    "folder": (lambda p: p.mkdir(), "it is a folder"),
    "large": (content(b"#" * (2**24 + 1)), "at most"),
    "a key twice": (content(f"{SWEEP}t1 = 2.0\n".encode()), "must be TOML"),
    "unknown key": (content(f"{SWEEP}colour = 1\n".encode()), "sweep.colour"),
    "unknown method": (content(f'{SWEEP}method = "magic"\n'.encode()), "unknown magic"),
    "infinite time": (content(SWEEP.replace("1.0", "inf").encode()), "sweep.t1"),
    "seeds": (content(SWEEP.replace("seeds = 2", "seeds = 1000000000000").encode()), "at most 10000000 members"),
    "digits": (content(SWEEP.replace("seeds = 2", "seeds = " + "9" * 5000).encode()), "must be TOML"),
    "widths": (content(SWEEP.replace("5", "1000000000000").encode()), "use draw = 'sampled'"),
    "ends": (
        content(f'{SWEEP}draw = "sampled"\n'.replace("2, 5, 1", "200000, 900000, 300000").encode()),
        "lower its ends",
    ),
    "date": (content(SWEEP.replace("1.0", "2024-01-01").encode()), "sweep.t1"),
    "seeds of text": (content(SWEEP.replace("seeds = 2", 'seeds = "many"').encode()), "sweep.seeds"),
}


@pytest.mark.parametrize("case", sorted(SPECS))
def test_specifications(case, capsys, tmp_path):
    make, words = SPECS[case]
    make(tmp_path / "s.toml")
    assert_refused(capsys, words, "sweep", "s.toml", "--out", "out", "--json")


LONG = "n" * 300
FLAGS = {
    "t1 zero": (("--t1", "0"), "t1"),
    "t1 negative": (("--t1", "-1"), "t1"),
    "t1 nan": (("--t1", "nan"), "t1"),
    "t1 infinite": (("--t1", "inf"), "t1"),
    "t1 text": (("--t1", "soon"), "t1"),
    "t1 hexadecimal": (("--t1", "0x10"), "t1"),
    "no t1": ((), "t1"),
    "rtol": (("--t1", "1", "--rtol", "-1e-8"), "rtol"),
    "rtol below round-off": (("--t1", "1", "--rtol", "1e-20"), "rtol"),
    "atol": (("--t1", "1", "--atol", "-1"), "atol"),
    "method": (("--t1", "1", "--method", "dop583"), "did you mean dop853"),
    "method of nothing": (("--t1", "1", "--method", ""), "method"),
    "no step": (("--t1", "1", "--method", "gd"), "step_size"),
    "step": (("--t1", "1", "--method", "gd", "--step-size", "0"), "step_size"),
    "step beyond t1": (("--t1", "1", "--method", "gd", "--step-size", "3"), "lower step_size"),
    "step of lsoda": (("--t1", "1", "--method", "lsoda", "--step-size", "0.1"), "step_size"),
    "backend": (("--t1", "1", "--backend", "torch"), "backend"),
    "backend of a flow": (("--t1", "1", "--backend", "jax"), "only gradient descent"),
    "points": (("--t1", "1", "--save-points", "1"), "save_points"),
    "points broken": (("--t1", "1", "--save-points", "2.5"), "save-points"),
    "points beyond memory": (("--t1", "1", "--save-points", "1000000000"), "238 GiB"),
    "points beyond numbers": (("--t1", "1", "--save-points", "9" * 400), "GiB"),
    "steps beyond memory": (("--t1", "1", "--method", "gd", "--step-size", "1e-10"), "447 GiB"),
    "max steps beyond memory": (
        ("--t1", "1e9", "--method", "gd", "--step-size", "1e-5", "--max-steps", "10000000000"),
        "447 GiB",
    ),
    "fixed steps beyond memory": (("--t1", "1e9", "--method", "rk45", "--step-size", "1e-5"), "GiB"),
    "steps beyond float64": (
        ("--t1", "1e300", "--method", "gd", "--step-size", "1e-300", "--wall-limit", "9"),
        "step_size",
    ),
    "max steps": (("--t1", "1", "--max-steps", "0"), "max_steps"),
    "wall limit": (("--t1", "1", "--wall-limit", "-1"), "wall_limit"),
    "stop loss": (("--t1", "1", "--stop-loss", "0"), "stop_loss"),
    "stop gradient": (("--t1", "1", "--stop-gradient", "nan"), "stop_gradient"),
    "reduce": (("--t1", "1", "--reduce", "perhaps"), "reduce"),
    "flag": (("--t1", "1", "--rtoll", "1"), "rtoll"),
    "flag twice": (("--t1", "1", "--t1", "2"), "t1"),
    "flag without value": (("--t1",), "t1"),
    "word too many": (("--t1", "1", "more"), "more"),
    "both": (("--t1", "1", "--target", "a.npy", "--data", "b.npz"), "--target"),
    "mask and data": (("--t1", "1", "--mask", "a.npy", "--data", "b.npz"), "--mask"),
    "mask without Y": (("--t1", "1", "--mask", "m.npz"), "m.npz must hold a matrix as key Y"),
    "loss": (("--t1", "1", "--loss", "hinge"), "one of squared"),
    "loss without data": (("--t1", "1", "--loss", "logistic"), "--data"),
    "target": (("--t1", "1", "--target", "none.npy"), "does not exist"),
    "target of nothing": (("--t1", "1", "--target", ""), "as key Y"),
    "data": (("--t1", "1", "--data", "none.npz"), "does not exist"),
    "out folder": (("--t1", "1", "--out", "nowhere/run.nc"), "folder does not exist"),
    "out is a folder": (("--t1", "1", "--out", "."), "is a folder"),
    "out too long": (("--t1", "1", "--out", LONG), "too long"),
    "out with a null": (("--t1", "1", "--out", "a\0b.nc"), "null"),
    "out over the weights": (("--t1", "1", "--out", "good.npz"), "is an input and is not written over"),
    "out over a file": (("--t1", "1", "--out", "m.npz"), "holds something else"),
    "out under a file": (("--t1", "1", "--out", "good.npz/run.nc"), "cannot be written"),
}


@pytest.mark.parametrize("case", sorted(FLAGS))
def test_flags(case, good, capsys):
    flags, words = FLAGS[case]
    assert_refused(capsys, words, "simulate", good, *flags)


INITIALIZE = ("initialize", "--out", "w.npz", "--dims")
CALLS = {
    "dims of text": ((*INITIALIZE, "5,a,1"), "must look like"),
    "dims of nothing": ((*INITIALIZE, ""), "must look like"),
    "two sizes": ((*INITIALIZE, "5,1"), "three sizes"),
    "width zero": ((*INITIALIZE, "5,0,1"), "at least 1"),
    "narrow": ((*INITIALIZE, "5,2,3"), "hidden widths"),
    "scheme": ((*INITIALIZE, "5,9,1", "--scheme", "fanin"), "did you mean fan_in"),
    "dims beyond memory": ((*INITIALIZE, "5,1000000000,1000000000,1"), "GiB"),
    "dims beyond half the memory": ((*INITIALIZE, "1,36000,36000,1"), "19.3 GiB"),
    "dims beyond float64": ((*INITIALIZE, f"5,{'9' * 400},1", "--compressed"), "sizes of at most"),
    "dims beyond digits": ((*INITIALIZE, f"5,{'9' * 5000},1"), "must look like"),
    "ends beyond memory": ((*INITIALIZE, "100000000,100000000,100000000", "--compressed"), "GiB"),
    "seed": ((*INITIALIZE, "5,9,1", "--seed", "-1"), "seed"),
    "scale": ((*INITIALIZE, "5,9,1", "--scale", "inf"), "scale"),
    "scale beyond float64": ((*INITIALIZE, "5,9,1", "--scale", "1e308"), "finite"),
    "no imbalance": ((*INITIALIZE, "2,3,2", "--scheme", "unimodal"), "`imbalance` must be given"),
    "imbalance": ((*INITIALIZE, "2,3,2", "--imbalance", "a,b"), "must look like 0.5,0.25"),
    "imbalance nan": (
        (*INITIALIZE, "2,3,3,2", "--scheme", "unimodal", "--imbalance", "nan,1", "--peak", "1"),
        "finite",
    ),
    "peak": ((*INITIALIZE, "2,3,3,2", "--scheme", "unimodal", "--imbalance", "1,1", "--peak", "9"), "peak"),
    "no out": (("initialize", "--dims", "5,9,1"), "out"),
    "reproduce where nothing can be": (("reproduce", "--out", "/proc/nowhere"), "cannot be made"),
    "reproduce a seed": (("reproduce", "--seed", "-1", "--out", "f"), "seed"),
    "no file": (("certify", "none.npz"), "does not exist"),
    "file of no name": (("certify", ""), "W1, W2"),
    "name with a null": (("certify", "a\0b.npz"), "null"),
    "name too long": (("certify", LONG), "too long"),
    "name that steers a terminal": (("certify", "\x1b[2J\udcff"), "File \\x1b[2J\\udcff does not exist"),
    "certify a loss": (("certify", "none.npz", "--loss", "hinge"), "one of squared, exponential, logistic"),
    "certify a tolerance": (("certify", "none.npz", "--tolerance", "-1"), "`tolerance` must be at least 0"),
    "command": (("fly",), "fly"),
    "compare nothing": (("compare", "nothing"), "`subject` must be"),
    "compare with a target": (("compare", "staircase", "--target", "y.npy"), "brings its loss"),
    "compare nearly": (("compare", "stair", "--t1", "1"), "did you mean staircase"),
    "compare by magic": (("compare", "{good}", "--t1", "1", "--methods", "magic"), "`methods`"),
    "compare for ever": (("compare", "{good}", "--t1", "1e300", "--time-limit", "0.1"), "`t1` must be a time that"),
    "compare without t1": (("compare", "{good}"), "`t1` must be given"),
    "compare at all times": (("compare", "{good}", "--t1", "1", "--times", "1000000000"), "GiB"),
    "compare never": (("compare", "{good}", "--t1", "1", "--repeats", "0"), "repeats"),
    "compare at no rtol": (("compare", "{good}", "--t1", "1", "--rtols", "x"), "must look like"),
    "diagnose weights": (("diagnose", "{good}"), "NetCDF-4, as runs are saved, but it is an .npz file"),
    "initialize over data": (("initialize", "--dims", "5,9,1", "--out", "s.toml"), "holds something else"),
    "report into a pipe": (("report", "none.nc", "--out", "pipe.html"), "pipe or a device"),
    "draw weights into a pipe": (("initialize", "--dims", "2,3,1", "--out", "pipe.html"), "pipe or a device"),
    "simulate into a pipe": (("simulate", "{good}", "--t1", "1", "--out", "pipe.html"), "pipe or a device"),
    "plot a folder": (("plot", "."), "it is a folder"),
    "report nothing": (("report", "none.nc"), "does not exist"),
    "report a folder": (("report", "."), "it is a folder"),
    "plot as text": (("plot", "{good}", "--out", "o.txt"), "must end in one of .png"),
    "cite weights": (("cite", "{good}"), "NetCDF-4"),
    "resume weights": (("simulate", "--resume", "{good}", "--t1", "1"), "NetCDF-4"),
    "endless configuration": (("simulate", "{good}", "--config", "/dev/zero"), "pipe or a device"),
    "shard of text": (("sweep", "s.toml", "--out", "o", "--shard", "a/b"), "must look like 2/4"),
    "shard beyond": (("sweep", "s.toml", "--out", "o", "--shard", "3/2"), "must be i/n"),
    "shard of none": (("sweep", "s.toml", "--out", "o", "--shard", "1/0"), "must be i/n"),
    "no workers": (("sweep", "s.toml", "--out", "o", "--workers", "0"), "workers"),
    "sweep into a file": (("sweep", "s.toml", "--out", "good.npz"), "cannot be made"),
}


@pytest.mark.parametrize("case", sorted(CALLS))
def test_calls(case, good, capsys, tmp_path):
    arguments, words = CALLS[case]
    (tmp_path / "s.toml").write_text(SWEEP)
    os.mkfifo(tmp_path / "pipe.html")
    assert_refused(capsys, words, *(argument.replace("{good}", str(good)) for argument in arguments))


def test_a_file_above_the_limit_is_refused_unread(good):
    with pytest.raises(fs.errors.InputError, match="at most 100 bytes"):
        files.read_weights(good, limit=100)


def test_an_unreadable_folder(good, capsys, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("everything is readable to root")
    (tmp_path / "closed").mkdir(mode=0)
    assert_refused(capsys, "Permission denied", "certify", "closed/w.npz")
    assert_refused(capsys, "Permission denied", "simulate", good, "--t1", 1, "--out", "closed/run.nc")


def test_the_memory_of_this_machine_is_known():
    assert 2**28 < checks.memory_bytes() < 2**50
