"""config.json and generation_config.json of a checkpoint: the registry of architectures.

Knows which reader speaks for which architecture; does not know tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mserve.checkpoint.folder import check_is_folder
from mserve.checkpoint.keys import Keys, read_json
from mserve.checkpoint.minimax_m2 import read_minimax_m2
from mserve.checkpoint.minimax_m3 import read_minimax_m3
from mserve.checkpoint.quantization import (
    DESCRIPTION_FILE,
    read_description,
    read_quantization,
)
from mserve.checkpoint.spec import ModelSpec
from mserve.core import CheckpointError, RequestError, SamplingParams

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"

READERS: dict[str, Callable[[Keys], ModelSpec]] = {
    "MiniMaxM2ForCausalLM": read_minimax_m2,
    "MiniMaxM3SparseForConditionalGeneration": read_minimax_m3,
    "MiniMaxM3SparseForCausalLM": read_minimax_m3,  # text-only export
    "MiniMaxM3VLForCausalLM": read_minimax_m3,  # text-only, as transformers saves it
}
"""Architecture, as config.json names it, to the reader of its keys."""

_READERS_OF_TYPE: dict[str, Callable[[Keys], ModelSpec]] = {
    "minimax_m2": read_minimax_m2,
    "minimax_m3_vl": read_minimax_m3,
    "minimax_m3_vl_text": read_minimax_m3,
}


def read_spec(path: str | Path) -> ModelSpec:
    """The model that ``path``/config.json describes; ``CheckpointError`` names file and key."""
    folder = Path(path)
    check_is_folder(folder)
    spec = _spec(read_json(folder / CONFIG_FILE))
    description = folder / DESCRIPTION_FILE
    if description.is_file():
        spec = msgspec.structs.replace(spec, quantization=read_description(description, spec))
    eos = _generation(folder).token_ids("eos_token_id", spec.vocab_size)
    return msgspec.structs.replace(spec, eos_token_ids=eos) if eos else spec


def parse_config(file: Path, values: dict[str, Any]) -> ModelSpec:
    """The model that the content of a config.json describes; ``file`` is for messages only."""
    return _spec(Keys(file, values))


def read_sampling_defaults(path: str | Path) -> SamplingParams:
    """What generation_config.json says of sampling; plain defaults where it says nothing.

    ``do_sample`` is not read: published files set it, re-saved ones drop it, and a request that
    wants greedy asks for temperature 0.
    """
    generation = _generation(Path(path))
    plain = SamplingParams()
    sampling = SamplingParams(
        temperature=generation.number("temperature", plain.temperature, zero=True),
        top_p=generation.number("top_p", plain.top_p),
        top_k=generation.integer("top_k", plain.top_k, at_least=0),
        min_p=generation.number("min_p", plain.min_p, zero=True),
        repetition_penalty=generation.number("repetition_penalty", plain.repetition_penalty),
    )
    try:
        sampling.validate(vocab_size=sampling.top_k)
    except RequestError as error:
        raise CheckpointError(f"{Path(path) / GENERATION_FILE}: {error.message}") from None
    return sampling


def _spec(config: Keys) -> ModelSpec:
    spec = _reader(config)(config)
    for part in (config, config.section("text_config")):
        section = None if part is None else part.section("quantization_config")
        if section is not None:
            return msgspec.structs.replace(spec, quantization=read_quantization(section, spec))
    return spec


def _reader(config: Keys) -> Callable[[Keys], ModelSpec]:
    if "architectures" in config:
        return config.names("architectures", 1, READERS)[0]
    return config.choice("model_type", _READERS_OF_TYPE)


def _generation(folder: Path) -> Keys:
    """Keys of generation_config.json; none when the file is absent, which is allowed."""
    file = folder / GENERATION_FILE
    return read_json(file) if file.is_file() else Keys(file, {})
