"""What a checkpoint says of its own quantization, in each writer's words.

    config.json, quantization_config       quant_method mxfp8, fp8 (blocks), modelopt (MXFP8)
    quant_model_description.json           ModelSlim: FLOAT, W8A8 or W8A8_DYNAMIC per tensor

What is declared is a promise; ``open_checkpoint`` goes by the tensors that the files really hold.
Knows keys and names; does not know shapes or bytes (``formats``).
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from mserve.checkpoint.formats import is_matrix
from mserve.checkpoint.keys import Keys, read_json
from mserve.checkpoint.names import expected_tensors, logical_name, without_prefix
from mserve.checkpoint.spec import ModelSpec, QuantSpec, WeightFormat

DESCRIPTION_FILE = "quant_model_description.json"

_METHODS: dict[str, WeightFormat] = {
    "mxfp8": "mxfp8",
    "modelopt": "mxfp8",
    "fp8": "fp8",
    "ascend": "int8",
}
_IGNORING_KEYS = ("ignored_layers", "modules_to_not_convert", "exclude_modules", "ignore")
_DESCRIBED: dict[str, WeightFormat] = {
    "FLOAT": "plain",
    "W8A8": "int8_static",
    "W8A8_DYNAMIC": "int8",
}


def read_quantization(section: Keys, spec: ModelSpec) -> QuantSpec:
    """The meaning of ``quantization_config``; ``CheckpointError`` for what we do not implement."""
    method = section.choice("quant_method", _METHODS)
    if "quant_algo" in section:
        section.expect("quant_algo", "MXFP8")
    elif section.word("quant_method") == "modelopt":
        section.refuse("quant_algo", '"MXFP8"')
    section.expect("activation_scheme", "dynamic")
    if method == "fp8":
        section.integers("weight_block_size", 2)  # without blocks there is one scale per tensor
        section.expect("weight_block_size", [128, 128])
        section.expect("fmt", "float8_e4m3fn", "e4m3")
    elif method == "mxfp8":
        section.expect("weight_block_size", [1, 32])
        section.expect("scale_fmt", "ue8m0")
    patterns = [word for key in _IGNORING_KEYS if key in section for word in section.strings(key)]
    ignored: dict[str, WeightFormat] = {
        name: "plain"
        for name in expected_tensors(spec)
        if is_matrix(name) and any(_names(pattern, name) for pattern in patterns)
    }
    return QuantSpec(method, ignored)


def read_description(file: Path, spec: ModelSpec) -> QuantSpec:
    """The meaning of ModelSlim's description of every tensor."""
    described = read_json(file)
    formats: dict[str, WeightFormat] = {}
    matrices = {name for name in expected_tensors(spec) if is_matrix(name)}
    for key in described:
        name = logical_name(key, spec)
        if name in matrices:
            formats[name] = described.choice(key, _DESCRIBED)
    counts = Counter(kind for kind in formats.values() if kind != "plain")
    most: WeightFormat = counts.most_common(1)[0][0] if counts else "plain"
    return QuantSpec(most, {name: kind for name, kind in formats.items() if kind != most})


def _names(pattern: str, name: str) -> bool:
    """Whether an entry of a list of modules means the one of tensor ``name``: with wildcards, or
    as whole components anywhere in its path."""
    module = name.removesuffix(".weight")
    if "*" in pattern:
        return any(fnmatchcase(prefix + module, pattern) for prefix in ("", "language_model."))
    return f".{without_prefix(pattern.removesuffix('.weight'))}." in f".{module}."
