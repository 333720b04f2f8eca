"""Files in and out, hardened: no pickle, sizes checked before anything is allocated, outputs renamed into place.

Weights travel as .npz with keys W1..WL (and optionally `scale`, `origin`, a target Y), as .safetensors, as PyTorch
state_dicts, or as folders of .npy; a target as .npy, .npz or .csv; data with X and Y as .npz or .csv.
"""

from flowsim.files.data import read_data, read_target
from flowsim.files.netcdf import read_netcdf
from flowsim.files.opening import LARGEST_FILE, check_readable, read_toml
from flowsim.files.weights import read_weights, save_weights
from flowsim.files.writing import NETCDF, NPZ, check_writable, make_folder, replacing, write_atomically, write_netcdf

__all__ = [
    "LARGEST_FILE",
    "NETCDF",
    "NPZ",
    "check_readable",
    "check_writable",
    "make_folder",
    "read_data",
    "read_netcdf",
    "read_target",
    "read_toml",
    "read_weights",
    "replacing",
    "save_weights",
    "write_atomically",
    "write_netcdf",
]
