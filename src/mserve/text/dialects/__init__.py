"""The markup of the models: thinking, content and tool calls told apart while they stream.

For the APIs. Make a ``DialectParser`` per answer, push tokens, pass the events on:

    dialect = of_family(spec.family)                       # or by_name("minimax_m3")
    ids = marker_ids(dialect, tokenizer)                   # once per server
    tools = Tools({tool name: JSON Schema of its arguments})
    parser = DialectParser(dialect, start, tools, marker_ids=ids)
    for event in parser.push(token_id, text): ...          # text from the Detokenizer
    for event in parser.finish(): ...

``start`` comes with the thinking mode (``mserve.text.plan_thinking``): it says in which state the
rendered prompt ends. ``parser.state`` is where the answer is after the last push. ``Answer``
does all this for a sequence, stop strings included.

For grammars. ``Dialect`` is the wire form as data: ``tag(...)`` spells each tag, ``value_form``
names the form of arguments ("parameters": M2, "elements": M3), ``markers`` are the tokens that
must be single. A constraint on the answer begins in ``State.CONTENT``: feed the tokens to a
parser of its own (``tools=None`` is enough to follow thinking) and constrain once ``state`` is no
longer ``THINKING``; with ``Start.EITHER`` the constraint must let ``think_open`` be the first
token. The transitions are those in ``machine``'s picture, and no others.

    file             what
    dialect          a dialect as a record; the protocol of its argument reader
    minimax_m2, _m3  the two records, each with a page for the form of values
    machine          the state machine
    markers          finding markers, real or spelled, in pieces of text
    schema           what a JSON Schema says about one value
    values           bare text to JSON by schema
    json_text        JSON that is valid at every moment
    names            dialects by name, by family; their token ids
"""

from mserve.text.dialects.dialect import (
    ArgumentsReader,
    CallContext,
    Dialect,
    Start,
    ThinkingMode,
)
from mserve.text.dialects.json_text import JsonReader
from mserve.text.dialects.machine import DialectParser, State, new_call_id
from mserve.text.dialects.names import DIALECTS, by_name, marker_ids, of_family
from mserve.text.dialects.schema import Kind, SchemaView, Tools, view_of

__all__ = [
    "DIALECTS",
    "ArgumentsReader",
    "CallContext",
    "Dialect",
    "DialectParser",
    "JsonReader",
    "Kind",
    "SchemaView",
    "Start",
    "State",
    "ThinkingMode",
    "Tools",
    "by_name",
    "marker_ids",
    "new_call_id",
    "of_family",
    "view_of",
]
