"""Weights, targets and data in: flowsim's own files, .safetensors, PyTorch's state_dicts, .csv."""

import json
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import save_file

import flowsim as fs
from flowsim import cli, files
from flowsim.errors import ConversionNotice, InputError

A1, A2, A3 = np.full((6, 3), 0.25), np.full((5, 6), -0.5), np.arange(10.0).reshape(2, 5)
"""(out, in) matrices of three layers from R^3 to R^2."""
CHAIN = {"0.weight": A1, "1.weight": A2, "2.weight": A3}


def quietly(read, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConversionNotice)
        return read(path)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def trained(torch):
    """A linear network after some steps of training, in float64."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b, bias=False, dtype=torch.float64) for a, b in pairwise((4, 8, 9, 2))]
    model = torch.nn.Sequential(*layers)
    X, Y = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        ((model(X) - Y) ** 2).mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
def test_a_trained_network_is_read(trained, torch, ending, tmp_path, capsys):
    path = tmp_path / f"model{ending}"
    if ending == ".safetensors":
        from safetensors.torch import save_file as save

        save(trained.state_dict(), path)
    else:
        torch.save(trained.state_dict(), path)
    with pytest.warns(ConversionNotice, match="transposed"):
        network = files.read_weights(path)
    X = np.random.default_rng(0).standard_normal((7, 4))
    with torch.no_grad():
        mapped = trained(torch.from_numpy(X)).numpy()
    assert network.dims == (4, 8, 9, 2)
    assert pytest.approx(mapped, abs=1e-12) == X @ network.product
    np.save(tmp_path / "y.npy", network.product + 0.01)
    assert cli.main(["certify", str(path), "--target", str(tmp_path / "y.npy"), "--json"]) == 0
    printed, notes = capsys.readouterr()
    best = json.loads(printed)["best"]
    assert 0 < best["alpha"] <= network.lambda_min_T
    assert "0.weight, 1.weight, 2.weight" in notes
    assert cli.main(["certify", str(path)]) == 0


@pytest.mark.parametrize("ending", ["pt", "pth", "ckpt", "bin"])
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "my_model"])
def test_state_dicts_within_checkpoints(key, ending, trained, torch, tmp_path):
    path = tmp_path / f"m.{ending}"
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9).state_dict()
    prefixed = {f"module.model.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"epoch": 3, "optimizer": optimizer, key: prefixed}, path)
    network = quietly(files.read_weights, path)
    assert (network.weights[0] == trained[0].weight.detach().numpy().T).all()
    assert files.read_target(path) is None


def test_of_two_state_dicts_none_is_guessed(trained, torch, tmp_path):
    state = trained.state_dict()
    torch.save({"generator": state, "critic": state}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="critic, generator; save the one meant"):
        files.read_weights(tmp_path / "m.pt")
    torch.save({"model": state, "average": state}, tmp_path / "m.pt")
    assert quietly(files.read_weights, tmp_path / "m.pt").depth == 3


AUTO = {"encoder.weight": np.full((2, 4), 3.0), "decoder.weight": np.arange(8.0).reshape(4, 2)}
"""(out, in): both orders chain."""


def named(path, *layers):
    return quietly(lambda place: files.read_weights(place, layers=list(layers)), path)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_an_order_that_is_not_plain_must_be_named(ending, tmp_path, capsys):
    path = tmp_path / f"m.{ending}"
    if ending == "safetensors":
        save_file(AUTO, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(value) for name, value in AUTO.items()}, path)
    with pytest.raises(InputError, match="--layers"):
        files.read_weights(path)
    mapped = AUTO["decoder.weight"] @ AUTO["encoder.weight"]
    assert named(path, "encoder", "decoder").product == pytest.approx(mapped.T)
    assert named(path, "decoder.weight", "encoder.weight").dims == (2, 4, 2)
    assert cli.main(["certify", str(path)]) == 2
    assert "--layers" in capsys.readouterr().err
    assert cli.main(["certify", str(path), "--layers", "encoder, decoder"]) == 0
    assert "encoder.weight, decoder.weight were taken in this order" in capsys.readouterr().err


def test_numbers_against_the_order_of_the_file(torch, tmp_path):
    square = {"fc2.weight": torch.eye(3), "fc1.weight": 2 * torch.eye(3)}
    torch.save(square, tmp_path / "m.pt")
    with pytest.raises(InputError, match="plain order"):
        files.read_weights(tmp_path / "m.pt")
    torch.save({"fc2.weight": torch.ones(2, 5), "fc1.weight": torch.ones(5, 3)}, tmp_path / "m.pt")
    assert quietly(files.read_weights, tmp_path / "m.pt").dims == (3, 5, 2)


def test_the_shapes_may_tell_the_order(tmp_path):
    save_file({"a.weight": A3, "b.weight": A1, "c.weight": A2}, tmp_path / "m.safetensors")
    assert quietly(files.read_weights, tmp_path / "m.safetensors").dims == (3, 6, 5, 2)
    many = {f"{letter}.weight": np.eye(2) for letter in "abcdefghijklmn"}
    save_file(many, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="plain order"):
        files.read_weights(tmp_path / "m.safetensors")


def test_a_part_of_a_model_may_be_named(tmp_path):
    whole = {**{f"net.{name}": value for name, value in CHAIN.items()}, "net.0.bias": np.zeros(6), "gain": np.ones(3)}
    save_file({**whole, "head.weight": np.ones((3, 2)), "head.bias": np.ones(3)}, tmp_path / "m.safetensors")
    path = tmp_path / "m.safetensors"
    assert named(path, "0", "1", "2").product == pytest.approx((A3 @ A2 @ A1).T)
    with pytest.warns(ConversionNotice, match=r"1 bias of zeros dropped; gain, head.bias, .* not used"):
        files.read_weights(path, layers=["net.0", "net.1.weight"])
    refused = [(["head", "0"], "`head.bias` is not zero"), (["0", "0"], "named twice"), (["3", "0"], "'3' is none")]
    refused += [(["1", "0"], "must hold layers that chain"), ([], "Linear layers"), (["gain"], "none")]
    for layers, words in refused:
        with pytest.raises(InputError, match=words):
            named(path, *layers)
    with pytest.raises(InputError, match="list of names"):
        files.read_weights(path, layers="net.0,net.1")


def test_layers_are_for_models_alone(tmp_path):
    files.save_weights(tmp_path / "w.npz", fs.fan_in((2, 5, 1), seed=0))
    with pytest.raises(InputError, match="`layers` must not be given"):
        named(tmp_path / "w.npz", "W1", "W2")


def test_the_order_of_a_state_dict_is_kept(torch, tmp_path):
    torch.save({"in.weight": torch.ones(5, 3), "a.weight": torch.ones(2, 5)}, tmp_path / "m.pt")
    assert quietly(files.read_weights, tmp_path / "m.pt").dims == (3, 5, 2)


def test_numbers_in_names_compare_as_numbers(tmp_path):
    dims = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 3)
    tensors = {f"layers.{k}.weight": np.ones((b, a)) for k, (a, b) in enumerate(pairwise(dims))}
    save_file(tensors, tmp_path / "m.safetensors")
    assert quietly(files.read_weights, tmp_path / "m.safetensors").dims == dims


def test_own_names_are_not_transposed(torch, tmp_path):
    tensors = {"W1": A1.T.copy(), "W2": A2.T.copy(), "W3": A3.T.copy(), "Y": np.ones((3, 2)), "scale": np.array(2.0)}
    save_file(tensors, tmp_path / "m.safetensors")
    network = files.read_weights(tmp_path / "m.safetensors")
    assert network.product == pytest.approx(2 * A1.T @ A2.T @ A3.T)
    assert (files.read_target(tmp_path / "m.safetensors") == 1).all()
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "m.pt")
    assert files.read_weights(tmp_path / "m.pt").product == pytest.approx(network.product)
    assert files.read_target(tmp_path / "m.pt") is None


def test_zero_biases_are_dropped_with_a_notice(tmp_path):
    save_file({**CHAIN, "0.bias": np.zeros(6), "2.bias": np.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.warns(ConversionNotice, match="2 biases of zeros dropped"):
        network = files.read_weights(tmp_path / "m.safetensors")
    assert network.product == pytest.approx((A3 @ A2 @ A1).T)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_short_floats_are_converted_with_a_notice(torch, kind, ending, tmp_path):
    from safetensors.torch import save_file as save

    tensors = {name: torch.from_numpy(A).to(getattr(torch, kind)) for name, A in CHAIN.items()}
    path = tmp_path / f"m.{ending}"
    (torch.save if ending == "pt" else save)(tensors, path)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        network = files.read_weights(path)
    assert sum("converted from" in str(notice.message) for notice in notices) == 3
    assert network.product == pytest.approx((A3 @ A2 @ A1).T, rel=1e-12)


def test_without_torch_the_remedy_is_named(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; from flowsim.cli import main;"
        f"sys.exit(main(['certify', {str(tmp_path / 'm.pt')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install torch" in done.stderr


REFUSED = {
    "bias": ({**CHAIN, "1.bias": np.ones(5)}, "`1.bias` is not zero"),
    "convolution": ({"c.weight": np.ones((4, 3, 3, 3)), "f.weight": np.ones((2, 4))}, "convolution"),
    "norm": ({**CHAIN, "3.weight": np.ones(2)}, "norm layer"),
    "buffer": ({**CHAIN, "3.running_mean": np.ones(2)}, "running_mean"),
    "parameter": ({**CHAIN, "gain": np.ones((2, 2))}, "`gain`"),
    "chain": ({"0.weight": A1, "1.weight": A3}, "must hold layers that chain"),
    "order": ({"first.weight": A3, "a.weight": A1}, "rename the layers"),
    "one layer": ({"0.weight": A1}, "at least two layers"),
    "nothing": ({}, "no array"),
    "biases alone": ({"0.bias": np.zeros(3)}, "`0.weight`"),
    "nan": ({**CHAIN, "1.weight": np.full((5, 6), np.nan)}, "finite"),
    "gap": ({"W1": A1.T.copy(), "W3": A3.T.copy()}, "all of W1 to W3"),
    "empty layer": ({"0.weight": np.ones((0, 3)), "1.weight": np.ones((2, 0))}, "must not be empty"),
}


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_no_linear_network_is_refused(case, ending, tmp_path):
    tensors, words = REFUSED[case]
    path = tmp_path / f"m.{ending}"
    if ending == "safetensors":
        save_file(tensors, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path)
    with pytest.raises(InputError, match=words) as refusal:
        quietly(files.read_weights, path)
    assert str(path) in str(refusal.value)


FOREIGN = {
    "module": (lambda torch: torch.nn.Linear(3, 3), "never loaded"),
    "list": (lambda torch: [torch.ones(3, 3)] * 2, "holds a list"),
    "number": (lambda torch: {"0.weight": torch.ones(3, 3), "epoch": 3}, "`epoch` is none"),
    "sparse": (lambda torch: {"0.weight": torch.ones(3, 3).to_sparse()}, "to_dense"),
    "expanded": (lambda torch: {"0.weight": torch.ones(1).expand(9, 9)}, "repeats its entries"),
    "complex": (lambda torch: {"0.weight": torch.ones(3, 3) * 1j, "1.weight": torch.ones(3, 3)}, "real numbers"),
    "old": (lambda torch: {"0.weight": torch.ones(3, 3)}, "1.6 or later"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_what_torch_saves_besides_is_refused(case, torch, tmp_path):
    make, words = FOREIGN[case]
    torch.save(make(torch), tmp_path / "m.pt", _use_new_zipfile_serialization=case != "old")
    with pytest.raises(InputError, match=words):
        quietly(files.read_weights, tmp_path / "m.pt")


def test_files_above_the_limit_are_refused(trained, torch, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "m.pt")
    save_file(CHAIN, tmp_path / "m.safetensors")
    (tmp_path / "y.csv").write_text("1,2\n" * 100)
    for name, read in (("m.pt", files.read_weights), ("m.safetensors", files.read_weights), ("y.csv", files.read_data)):
        with pytest.raises(InputError, match="at most"):
            read(tmp_path / name, limit=100)


def test_tables(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes(b'\xef\xbb\xbf"x1",Y1,x2,yield\r\n1,2,3,4\r\n5,6,7,8e0\r\n\r\n')
    X, Y = files.read_data(path)
    assert X.tolist() == [[1, 3], [5, 7]]
    assert Y.tolist() == [[2, 4], [6, 8]]
    assert files.read_target(path).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    path.write_text("1,2\n3,4\n")
    assert files.read_target(path).tolist() == [[1, 2], [3, 4]]


def test_the_command_reads_tables(tmp_path, capsys):
    files.save_weights(tmp_path / "w.npz", fs.fan_in((2, 5, 1), seed=0))
    (tmp_path / "d.csv").write_text("a,b,y\n1,0,1\n0,1,2\n")
    (tmp_path / "t.csv").write_text("1\n2\n")
    losses = []
    for flag, name in (("--data", "d.csv"), ("--target", "t.csv")):
        words = ["simulate", str(tmp_path / "w.npz"), flag, str(tmp_path / name), "--t1", "0.1", "--json"]
        assert cli.main(words) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
