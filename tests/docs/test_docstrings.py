"""Docstrings of the public names: every example runs and says the truth, and in some modules they have all their sections.

The public names are those of tests/project/public_api.txt. An example knows np and fg, and in an adapter its peer as the README does:
torch and fgt, or jax, jnp and fgj.
"""

import doctest
import functools
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from keras_import import import_keras

import fastgrad as fg

API = Path(__file__).parents[1] / "project" / "public_api.txt"
NAMES = [line.partition("(")[0] for line in API.read_text("utf-8").splitlines()]
# what examples of an adapter know besides; its peer is the first
ALIASES = {
    "fastgrad.torch": {"torch": "torch", "fgt": "fastgrad.torch"},
    "fastgrad.jax": {"jax": "jax", "jnp": "jax.numpy", "fgj": "fastgrad.jax"},
    "fastgrad.sklearn": {"sklearn": "sklearn"},
}
# examples of these need a library
PEERS = {
    "fastgrad.convert.model_from_torch": "torch",
    "fastgrad.convert.model_to_torch": "torch",
    "fastgrad.convert.model_from_keras": "keras",
    "fastgrad.convert.model_to_keras": "keras",
    "fastgrad.export_onnx": "onnx",
}
# modules whose public functions and classes have all sections
MODULES = [
    "fastgrad.convert",
    "fastgrad.convert.onnx_export",
    "fastgrad.core.backend",
    "fastgrad.functional.batch_norm",
    "fastgrad.functional.clip",
    "fastgrad.functional.conv",
    "fastgrad.functional.dense",
    "fastgrad.functional.layer_norm",
    "fastgrad.functional.loss",
    "fastgrad.functional.lstm",
    "fastgrad.functional.pool",
    "fastgrad.gpu",
    "fastgrad.health",
    "fastgrad.health.report",
    "fastgrad.init.distributions",
    "fastgrad.init.gains",
    "fastgrad.init.scaled",
    "fastgrad.jax.ops.batch_norm",
    "fastgrad.jax.ops.dense",
    "fastgrad.jax.ops.gru",
    "fastgrad.jax.ops.layer_norm",
    "fastgrad.jax.ops.lstm",
    "fastgrad.nn.batch_norm",
    "fastgrad.nn.container",
    "fastgrad.nn.conv",
    "fastgrad.nn.dense",
    "fastgrad.nn.dropout",
    "fastgrad.nn.layer_norm",
    "fastgrad.nn.lstm",
    "fastgrad.nn.model",
    "fastgrad.nn.pool",
    "fastgrad.nn.residual",
    "fastgrad.nn.resnet",
    "fastgrad.optim",
    "fastgrad.optim.adagrad",
    "fastgrad.optim.adam",
    "fastgrad.optim.constraint",
    "fastgrad.optim.optimizer",
    "fastgrad.optim.rmsprop",
    "fastgrad.optim.setting",
    "fastgrad.optim.sgd",
    "fastgrad.optim.updater",
    "fastgrad.pruning",
    "fastgrad.pruning.gradual",
    "fastgrad.schedule",
    "fastgrad.sklearn.estimators",
    "fastgrad.torch.acceleration",
    "fastgrad.torch.gru_module",
    "fastgrad.torch.lstm_module",
    "fastgrad.torch.modules",
    "fastgrad.torch.ops.batch_norm",
    "fastgrad.torch.ops.clip",
    "fastgrad.torch.ops.conv",
    "fastgrad.torch.ops.conv_block",
    "fastgrad.torch.ops.dense",
    "fastgrad.torch.ops.gru",
    "fastgrad.torch.ops.layer_norm",
    "fastgrad.torch.ops.loss",
    "fastgrad.torch.ops.lstm",
    "fastgrad.torch.ops.packing",
    "fastgrad.torch.optim",
    "fastgrad.training.checkpoint",
    "fastgrad.training.trainer",
]
SECTIONS = "Args", "Returns", "Raises", "Example", "References"
STARS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def adapter_of(name):
    return next((adapter for adapter in ALIASES if name.startswith(f"{adapter}.")), None)


def aliases_of(name):
    """What examples of this name know, by alias; skips where a peer is not installed."""
    aliases, adapter = {"np": np, "fg": fg}, adapter_of(name)
    for alias, module in ALIASES.get(adapter, {}).items():
        aliases[alias] = pytest.importorskip(module)
    if adapter:
        importlib.import_module(adapter)
    return aliases


def value_of(name):
    return functools.reduce(getattr, name.split(".")[1:], fg)


def docstring(value):
    """The docstring that the value itself has."""
    return inspect.cleandoc(value.__doc__ or "") if callable(value) or isinstance(value, property) else ""


def sections(text):
    """{title: lines without their indent} of a docstring; what comes before the first title is under ""."""
    parts, title = {"": []}, ""
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][a-z]+:", line):
            title = line[:-1]
            assert title not in parts, f"there are two sections {title}"
            parts[title] = []
        else:
            parts[title].append(line[4:] if title else line)
    return parts


def check_form(text):
    """The first line is a sentence, and the sections are the known ones in their order."""
    assert text.splitlines()[0].endswith("."), "the first line must end with a full stop"
    titles = [title for title in sections(text) if title]
    assert titles == [title for title in SECTIONS if title in titles], f"the sections are {titles}"


def check_contents(value, text, is_member):
    """There is an entry for each parameter, what is returned where something is, and for what is no member an example."""
    parts, signature = sections(text), inspect.signature(value)
    parameters = list(signature.parameters.values())[is_member:]
    entries = re.findall(r"^(\*{0,2}\w+): \S", "\n".join(parts.get("Args", [])), re.MULTILINE)
    assert entries == [STARS.get(p.kind, "") + p.name for p in parameters]
    returns = not inspect.isclass(value) and signature.return_annotation is not None
    assert ("Returns" in parts) == returns
    assert is_member or any(line.startswith(">>> ") for line in parts.get("Example", [])), "there is no example"


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_every_public_name_runs(name):
    aliases = aliases_of(name)
    if peer := PEERS.get(name):
        import_keras() if peer == "keras" else pytest.importorskip(peer)
    example = doctest.DocTestParser().get_doctest(docstring(value_of(name)), aliases, name, None, None)
    failures = []
    with fg.use_backend("numpy"):
        doctest.DocTestRunner(verbose=False).run(example, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_of_public_names_have_all_their_sections(module):
    aliases_of(module)
    wrong, count = [], 0
    for name in NAMES:
        if adapter_of(name) != adapter_of(module):
            continue
        value = value_of(name)
        function = value.fget if isinstance(value, property) else value
        if getattr(function, "__module__", None) != module:
            continue
        count += 1
        text = docstring(value)
        is_member = isinstance(value, property) or (not inspect.isclass(value) and "." in value.__qualname__)
        try:
            # an overriding method may leave it to the method of the base class
            assert text or (is_member and inspect.getdoc(value)), "there is no docstring"
            if text:
                check_form(text)
            # an adapter's methods take what those of its peer take
            if text and not isinstance(value, property) and not (is_member and adapter_of(module)):
                check_contents(value, text, is_member)
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
    assert count
    assert not wrong, "\n".join(wrong)
