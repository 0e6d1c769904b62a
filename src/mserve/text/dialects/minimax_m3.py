"""MiniMax-M3: arguments are nested elements, each tag behind the namespace token.

    ]<]minimax[>[<k>v]<]minimax[>[</k>        in an object: key k is "v"
    ]<]minimax[>[<item>v]<]minimax[>[</item>  in a list: one more element

Strings are raw, everything else is JSON, ``null`` is left out, and an empty element is an empty
string, list or object. So a value's kind is not in its text: the schema says it, and where it
does not, the first thing in an element does: ``item`` a list, another tag an object, text a
scalar. Once a value has text it is a scalar, and tags within it are text.
"""

from __future__ import annotations

from typing import Literal

from mserve.text.dialects.dialect import CallContext, Dialect, Start
from mserve.text.dialects.json_text import MAX_DEPTH, JsonWriter, escape
from mserve.text.dialects.markers import MAX_TAG_CHARS, search_pattern
from mserve.text.dialects.schema import SchemaView
from mserve.text.dialects.values import Leaf, told

_ITEM = "item"
MARK = "]<]minimax[>["


class _Element:
    """One open element. ``state`` is decided by the schema or by what comes first."""

    def __init__(self, name: str, view: SchemaView) -> None:
        self.name = name
        self.view = view
        self.state: Literal["undecided", "object", "list", "leaf", "skipped"] = "undecided"
        self.text = ""  # so far, of an undecided element or one that tells a union apart
        self.is_telling = False
        self.leaf: Leaf | None = None
        self.keys: set[str] = set()
        self.num_items = 0
        self.is_whole_list = False  # it is the only item of a list that ends with it
        self.unended_list: str | None = None  # key of a child list that may get more items
        self.num_unended_items = 0


class ElementReader:
    """Reads the elements of one call."""

    def __init__(self, call: CallContext) -> None:
        self.done = False
        self.rest = ""
        self.stray: list[str] = []
        self.problems: list[str] = []
        self._dialect = call.dialect
        self._writer = JsonWriter()
        self._pattern = _REAL if call.is_real else _ANY
        self._buffer = ""
        root = _Element("", call.tools.arguments_of(call.tool))
        root.state = "object"
        self._stack = [root]
        self._writer.open_object()

    def push(self, text: str) -> str:
        if self._buffer:
            self._buffer += text
        elif self._pattern.search(text) is None:
            self._text(text)
            return self._writer.take()
        else:
            self._buffer = text
        self._read()
        return self._writer.take()

    def finish(self) -> str:
        if self._stack[-1].state == "leaf" and not self._pattern.match(self._buffer + "\0"):
            self._text(self._buffer)  # looked like a mark, and the answer ended
        self._buffer = ""  # a tag cut off is no text
        self._close_all()
        return self._writer.take()

    def _read(self) -> None:
        while self._buffer and not self.done:
            found = self._pattern.search(self._buffer)
            if found is None:
                text, self._buffer = self._buffer, ""
                self._text(text)
                return
            if found.start():
                self._text(self._buffer[: found.start()])
                self._buffer = self._buffer[found.start() :]
            if found.group(1) is None:
                return
            mark = found.group(1)
            tag_chars = self._tag(self._buffer[len(mark) :])
            if tag_chars is None:
                break
            if not tag_chars and self._stack[-1].state in ("leaf", "undecided"):
                self._text(MARK)
            self._buffer = self._buffer[len(mark) + tag_chars :]
        if self.done:
            self.rest, self._buffer = self._buffer, ""

    def _tag(self, text: str) -> int | None:
        """Act on the tag that ``text`` begins with. Returns its length, 0 if it is no tag, and
        ``None`` if that takes more text to tell."""
        if not text:
            return None
        if text[0] != "<":
            return 0
        if text.startswith("</"):
            return self._closing_tag(text)
        top = self._stack[-1]
        if top.state in ("leaf", "skipped"):
            return None if text == "<" else 0
        if top.state == "undecided" and not self._may_nest(top):
            return None if text == "<" else 0
        if any(map(self._dialect.is_real, text.partition(">")[0])):
            return 0  # no key holds a real marker
        name = _tag_name(text, self._stack[-1].view)
        if name is None:
            return None if len(text) < MAX_TAG_CHARS else 0
        self._open(name)
        return len(name) + 2

    def _closing_tag(self, text: str) -> int | None:
        for depth in range(len(self._stack) - 1, 0, -1):
            closer = f"</{self._stack[depth].name}>"
            if text.startswith(closer):
                self._close_to(depth)
                return len(closer)
            if closer.startswith(text):
                return None
        for closer in (self._dialect.call_close, self._dialect.block_close):
            if text.startswith(closer):
                self._close_all()
                self.done = True
                if closer == self._dialect.call_close:
                    return len(closer)
                self._note("the call is not closed")
                return None  # the block's end is for the machine to read
            if closer.startswith(text):
                return None
        return 0

    def _may_nest(self, element: _Element) -> bool:
        if len(self._stack) > MAX_DEPTH:
            self._note(f"{element.name} is nested deeper than {MAX_DEPTH}")
            return False
        return element.view.allows("object") or element.view.allows("array")

    def _text(self, text: str) -> None:
        if not text:
            return
        text = self._dialect.spellings.text(text)
        element = self._stack[-1]
        if element.leaf is not None:
            element.leaf.push(text)
            if element.is_telling:
                element.text += text
        elif element.state == "undecided":
            element.text += text
            if element.text.strip():
                self._become_leaf(element)
        else:
            self.stray.append(text)

    def _become_leaf(self, element: _Element) -> None:
        view, text = element.view, element.text
        if view.kinds == ("array",) and not text.lstrip().startswith("["):
            view = self._open_list_of(element)
        element.state = "leaf"
        element.leaf = Leaf(view, self._writer)
        element.leaf.push(text)

    def _open_list_of(self, element: _Element) -> SchemaView:
        """An element whose schema is a list, but which is itself an item: a list written as
        repeated elements. Returns the view of an item."""
        parent = self._stack[-2]
        self._writer.open_array()
        self._writer.element()
        if parent.state == "object":
            parent.unended_list, parent.num_unended_items = element.name, 1
        else:
            element.is_whole_list = True
        return element.view.item(0)

    def _open(self, name: str) -> None:
        parent = self._stack[-1]
        if parent.state == "undecided":
            self._become_container(parent, name)
        if parent.state == "list":
            if name != _ITEM:
                self._note(f"{parent.name}: an item is called {name}")
            self._writer.element()
            child = _Element(name, parent.view.item(parent.num_items))
            parent.num_items += 1
            self._stack.append(child)
        elif parent.unended_list == name:
            self._writer.element()
            view = parent.view.member(name).item(parent.num_unended_items)
            parent.num_unended_items += 1
            self._stack.append(_Element(name, view))
        else:
            self._end_list(parent)
            child = _Element(name, parent.view.member(name))
            self._stack.append(child)
            if name in parent.keys:
                self._note(f"{name} is repeated")
                child.state = "skipped"
                return
            parent.keys.add(name)
            child.is_telling = parent.view.tells_apart(name)
            self._writer.key(name)
        self._decide_early(self._stack[-1])

    def _decide_early(self, element: _Element) -> None:
        """A string is one from its first character, blanks included."""
        if element.view.kinds == ("string",):
            element.state = "leaf"
            element.leaf = Leaf(element.view, self._writer)

    def _become_container(self, element: _Element, first: str) -> None:
        view = element.view
        is_list = view.allows("array") and (
            not view.allows("object") or (first == _ITEM and not _object_claims_item(view))
        )
        if is_list and first != _ITEM and view.item(0).declares(first):
            element.view = self._open_list_of(element)
            is_list = False
        element.state = "list" if is_list else "object"
        if is_list:
            self._writer.open_array()
        else:
            self._writer.open_object()

    def _close_to(self, depth: int) -> None:
        while len(self._stack) > depth:
            if len(self._stack) > depth + 1:
                self._note(f"{self._stack[-1].name} is not closed")
            self._close_top()

    def _close_all(self) -> None:
        self._close_to(1)
        self._end_list(self._stack[0])
        self._writer.close()

    def _close_top(self) -> None:
        element = self._stack.pop()
        if element.leaf is not None:
            if not element.leaf.finish():
                self._note(f"{element.name} does not fit its schema")
            if element.leaf.rest:
                self.stray.append(element.leaf.rest)
            if element.is_telling:
                self._stack[-1].view = told(self._stack[-1].view, element.name, element.text)
        elif element.state == "undecided":
            self._close_empty(element)
        elif element.state != "skipped":
            self._end_list(element)
            self._writer.close()
        if element.is_whole_list:
            self._writer.close()

    def _close_empty(self, element: _Element) -> None:
        for kind in element.view.kinds:
            if kind == "string":
                break
            if kind in ("array", "object"):
                self._writer.raw("[]" if kind == "array" else "{}")
                return
        self._writer.raw(escape(element.text))

    def _end_list(self, parent: _Element) -> None:
        if parent.unended_list is not None:
            parent.unended_list = None
            self._writer.close()

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def _tag_name(text: str, view: SchemaView) -> str | None:
    """The key in ``<key>``: up to the first ``>``, unless the schema names a key that holds one."""
    for key in view.declared_keys():
        if ">" in key:
            if text.startswith(f"<{key}>"):
                return key
            if f"<{key}>".startswith(text):
                return None
    end = text.find(">")
    return None if end < 0 else text[1:end]


def _object_claims_item(view: SchemaView) -> bool:
    kinds = view.kinds
    return bool(kinds) and kinds.index("object") < kinds.index("array") and view.declares(_ITEM)


M3 = Dialect(
    name="minimax_m3",
    family="m3",
    think_open="<mm:think>",
    think_close="</mm:think>",
    mark=MARK,
    block_open="<tool_call>",
    block_close="</tool_call>",
    call_open='<invoke name="',
    call_open_end='">',
    call_close="</invoke>",
    value_form="elements",
    markers=(MARK, "<mm:think>", "</mm:think>"),
    shown_tokens=("<tool_call>", "</tool_call>"),
    starts={"enabled": Start.THINKING, "disabled": Start.CONTENT, "adaptive": Start.EITHER},
    default_mode="adaptive",
    mode_variable="thinking_mode",
    read_arguments=ElementReader,
)

_REAL = search_pattern([M3.spellings.both(MARK)[0]])
_ANY = search_pattern(M3.spellings.both(MARK))
