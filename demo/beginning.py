"""Where training begins: random, but for one circuit that can already look back.

Nearly all that the demo is asked needs "find where this stood before, say what followed". Random
weights find that circuit only after millions of tokens, because each of its parts is useless
without the others. So it is laid out once, roughly, and training makes of it what it needs:

    layer 0   two heads attend one and two tokens back, by position alone, and note what stands
              there in dimensions of the residual stream that the embedding leaves empty
    layer 1   a head looks for places whose two tokens before are the present token and the one
              before it, and copies what it finds; the index branch selects by the same match
    head      begins as a copy of the embedding, so that what is copied is what is said

A word with a blank before it and the same word without are two tokens, and a question often has the
one where its answer needs the other. They begin alike, but for one direction that all words share.

Nothing is frozen. Knows the model's parameters; does not know text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from demo.model import DemoModel

_CONSTANT = 2.0  # in the one dimension that all embeddings share
_NOTE_WIDTH = 16  # dimensions in which a token is noted: as many as fit twice beside rotated ones
_POSITION_PAIRS = 6  # the fastest rotations: their sum is highest at one distance only
_REST = 0.1  # of random weights around what is laid out
_APART = 0.2  # of the size of a row
_COPIED = 3.0
_SAID = 0.12


@torch.no_grad()
def lay_out_looking_back(
    model: DemoModel, seed: int, twins: Sequence[tuple[int, int]] = ()
) -> None:
    """Overwrite parts of a random ``model``; ``twins`` are ids of words with and without a blank
    before them."""
    generator = torch.Generator().manual_seed(seed)
    if twins:
        direction = torch.randn(model.shape.hidden_size, generator=generator)
        apart = _APART * direction * model.embedding.square().mean().sqrt()
        with_blank, without = torch.tensor(twins).unbind(1)
        middle = (model.embedding[with_blank] + model.embedding[without]) / 2
        model.embedding[with_blank] = middle + apart
        model.embedding[without] = middle - apart
    hidden, width = model.shape.hidden_size, model.shape.head_dim
    constant = hidden - 1
    notes = slice(hidden - 1 - 2 * _NOTE_WIDTH, hidden - 1)
    one_back = slice(notes.start, notes.start + _NOTE_WIDTH)
    two_back = slice(one_back.stop, notes.stop)
    model.embedding[:, notes] = 0
    model.embedding[:, constant] = _CONSTANT
    model.head.copy_(model.embedding * _SAID)
    model.head[:, constant] = 0
    size = float(model.embedding.square().mean().sqrt())
    sketch = _projection(_NOTE_WIDTH, hidden, notes.start, generator)
    _attend_by_position(model, constant)
    _note(model, sketch * size, one_back, two_back)

    first = model.layers[1].attention
    rotated = model.shape.rotary_dim
    present = slice(rotated, rotated + _NOTE_WIDTH)
    before = slice(present.stop, present.stop + _NOTE_WIDTH)
    identity = torch.eye(_NOTE_WIDTH)
    for matrix in (first.q[:width], first.k[:width]):
        matrix *= _REST
    first.q[present] = sketch
    first.q[before, one_back] = identity
    first.k[present, one_back] = identity
    first.k[before, two_back] = identity
    for norm in (first.q_norm, first.k_norm):
        norm.fill_(0.8)
    copy = _projection(width, hidden, notes.start, generator)
    first.v[:width] = copy
    first.o[:, :width] = copy.t() * _COPIED
    if first.index is not None:
        first.index.q[:width] = first.q[:width]
        first.index.k.copy_(first.k[:width])


def _attend_by_position(model: DemoModel, constant: int) -> None:
    """The first two heads of layer 0 attend one and two tokens back: queries and keys are the
    same for all tokens, the query turned by the distance."""
    attention, pairs = model.layers[0].attention, _POSITION_PAIRS
    width, half = model.shape.head_dim, model.shape.rotary_dim // 2
    angles = model.frequencies[:pairs].float()
    rows = [attention.k[:width], attention.q[:width], attention.q[width : 2 * width]]
    for distance, matrix in zip((0, 1, 2), rows, strict=True):
        matrix *= _REST
        matrix[:, constant] = 0
        matrix[:pairs, constant] = (angles * distance).cos()
        matrix[half : half + pairs, constant] = -(angles * distance).sin()
    for norm in (attention.q_norm, attention.k_norm):
        norm[:pairs] = norm[half : half + pairs] = 1.4


def _note(model: DemoModel, sketch: Tensor, one_back: slice, two_back: slice) -> None:
    """What the two heads see goes to dimensions of its own, and nothing else of layer 0 does."""
    layer, width = model.layers[0], model.shape.head_dim
    attention = layer.attention
    attention.v[:_NOTE_WIDTH] = sketch
    for rows in (one_back, two_back):
        attention.o[rows] = 0
        layer.mlp.down[rows] = 0
    identity = torch.eye(_NOTE_WIDTH)
    attention.o[one_back, :_NOTE_WIDTH] = identity
    attention.o[two_back, width : width + _NOTE_WIDTH] = identity


def _projection(rows: int, columns: int, used: int, generator: torch.Generator) -> Tensor:
    """``rows`` orthogonal directions among the first ``used`` of ``columns`` dimensions."""
    random = torch.randn(used, rows, generator=generator)
    result = torch.zeros(rows, columns)
    result[:, :used] = torch.linalg.qr(random).Q.t()
    return result
