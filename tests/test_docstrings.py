"""The examples in the docstrings: they run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import flowsim as fs

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = [
    "flowsim",
    *(m.name for m in pkgutil.walk_packages(fs.__path__, "flowsim.") if not m.name.endswith("__main__")),
]
PUBLIC = [name for name in fs.__all__ if inspect.isclass(getattr(fs, name)) or inspect.isfunction(getattr(fs, name))]


def examples(module):
    found = doctest.DocTestFinder(exclude_empty=True).find(module)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name):
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    complaints = []
    for test in examples(importlib.import_module(name)):
        runner.run(test, out=complaints.append)
    assert runner.failures == 0, "".join(complaints)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_with_an_example(name):
    subject = getattr(fs, name)
    documented = doctest.DocTestFinder(recurse=False).find(subject, name)
    assert documented, f"{name} has no docstring"
    assert documented[0].examples, f"{name} has no example"
    assert not documented[0].docstring.startswith(f"{name}("), f"{name} has only the docstring that dataclass makes"


def parameters(subject):
    """(what has them, name, docstring of it and of what it overrides) of a function, or of a class and its methods."""
    if inspect.isfunction(subject):
        yield from ((subject.__name__, name, inspect.getdoc(subject)) for name in inspect.signature(subject).parameters)
        return
    line = [kind for kind in subject.__mro__ if kind.__module__.startswith("flowsim")]
    own = " ".join(kind.__doc__ or "" for kind in line)
    yield from ((subject.__name__, name, own) for name in inspect.signature(subject).parameters)
    for name, method in vars(subject).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            told = " ".join(getattr(getattr(kind, name, None), "__doc__", None) or "" for kind in line) + own
            yield from ((f"{subject.__name__}.{name}", p, told) for p in inspect.signature(method).parameters)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_described(name):
    """By its name, in the docstring of the function, or of the class."""
    undescribed = [
        f"{where}({parameter})"
        for where, parameter, told in parameters(getattr(fs, name))
        if parameter not in ("self", "cls", "args", "kwargs", "style")
        and not re.search(rf"\b{re.escape(parameter)}\b", told or "")
    ]
    assert not undescribed
