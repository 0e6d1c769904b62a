"""What an answer must look like, from the words of a request to a grammar over the wire form.

For the APIs. Once per server:

    checker = GrammarChecker(vocabulary_facts(tokenizer, dialect, eos_ids))   # close it at the end

Per request:

    constrained = constraint_for(dialect, marker_ids, start, response_format=..., tools=...)
    if constrained is not None:
        await checker.check(constrained)
        sampling = replace(sampling, constraint=constrained.constraint)
        ignored += constrained.passed_over

    file        what
    constraint  thinking, content, answer and calls in their order
    answer      response_format and structured_outputs
    calls       the block of calls, by a dialect's tags
    arguments   the arguments of a call, in either wire form
    bare        one value as bare text
    schema      a JSON Schema made fit for grammars
    rules       writing rules
    vocabulary  the tokens that grammars are matched against
    checker     trying a grammar in a process that can be killed (``worker``)
"""

from mserve.text.grammar.calls import MAX_NAME_CHARS, Tool, check_names
from mserve.text.grammar.checker import GrammarChecker
from mserve.text.grammar.constraint import Constrained, NamedTool, ToolChoice, constraint_for
from mserve.text.grammar.vocabulary import vocabulary_facts

__all__ = [
    "MAX_NAME_CHARS",
    "Constrained",
    "GrammarChecker",
    "NamedTool",
    "Tool",
    "ToolChoice",
    "check_names",
    "constraint_for",
    "vocabulary_facts",
]
