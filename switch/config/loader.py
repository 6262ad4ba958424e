# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain data that remembers where each value stood, without the surprises of YAML 1.1.

Theory of operation. PyYAML scans, parses and composes; we build the values ourselves from its nodes, because what a
plain word means is where YAML surprises people. Read as values: null, true, false, decimal numbers; everything else is
text. So `on` is text here; what another YAML reader would silently turn into something else (an unquoted MAC, a number
with colons, an octal) is refused, so that a file never means two things. Anchors and aliases work, within a bound on
how much they may expand to. Tags, merge keys, several documents and duplicate keys are refused.

Faults that leave the structure readable are collected and reading goes on; a syntax error ends it with one fault.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from switch.config.reading import MAX_BYTES, read_bytes
from switch.errors import ConfigError, Fault

Path_ = tuple[str | int, ...]  # ("ports", 1, "vlan", "access")
Place = tuple[int, int]  # line and column, both from 1

MAX_DEPTH = 32
MAX_VALUES = 300_000  # after aliases are expanded

_PLAIN, _QUOTED, _LIST, _MAPPING = "switch:plain", "switch:quoted", "switch:list", "switch:mapping"
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE"))
_FALSE = frozenset(("false", "False", "FALSE"))
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_FLOAT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)", re.ASCII)
_MAC_LIKE = re.compile(r"[0-9A-Fa-f]{1,2}(?:[:-][0-9A-Fa-f]{1,2}){5}", re.ASCII)
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?", re.ASCII)
_OCTAL = re.compile(r"[-+]?0o?[0-9_]+", re.ASCII)
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@dataclass(slots=True)
class Document:
    """What was read. `poisoned`: paths whose value was refused already, so that nobody complains about it twice."""

    data: Any = None
    values: dict[Path_, Place] = field(default_factory=dict)
    keys: dict[Path_, Place] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    poisoned: set[Path_] = field(default_factory=set)

    def place(self, path: Path_, of_key: bool = False) -> Place:
        """Where `path` stands, or the nearest thing around it that does."""
        if of_key and path in self.keys:
            return self.keys[path]
        for length in range(len(path), -1, -1):
            if path[:length] in self.values:
                return self.values[path[:length]]
        return (0, 0)


def path_text(path: Path_) -> str:
    """("ports", 1, "vlan") -> "ports[1].vlan"."""
    text = ""
    for position, part in enumerate(path):
        if isinstance(part, int) and not isinstance(part, bool):
            text += f"[{part}]"
        else:
            shown = part if _PLAIN_KEY.fullmatch(str(part)) else repr(part)
            text += f".{shown}" if position else str(shown)
    return text


def read_file(path: Path) -> str:
    """The text of a configuration file. Raises ConfigError with one fault when there is none to be had."""
    try:
        raw = read_bytes(path, MAX_BYTES)
    except OSError as error:
        remedy = {FileNotFoundError: ": check the path", PermissionError: ": check owner and mode of the file"}
        why = error.strerror or str(error)
        reason = f"cannot read the configuration: {why[:1].lower()}{why[1:]}{remedy.get(type(error), '')}"
        raise ConfigError([Fault("", reason, str(path))]) from error
    return decode(raw, str(path))


def decode(raw: bytes, name: str) -> str:
    """Bytes -> text; only UTF-8, with or without a byte order mark."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode("utf-8-sig", "replace")
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        reason = f"byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise ConfigError([Fault("", reason, name, line, column)]) from error


def read_yaml(text: str, name: str) -> Document:
    """The one document in `text`. Raises ConfigError when no data can be had; other faults are in the result."""
    document = Document()
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_fault(error, text, name)]) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        reason = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML: remove it"
        raise ConfigError([Fault("", reason, name, line, column)]) from error
    finally:
        if loader is not None:
            loader.dispose()
    if node is None or (node.tag == _PLAIN and node.value in _NULL):
        raise ConfigError([Fault("", "is empty: a configuration starts with version: 1", name)])
    if not isinstance(node, yaml.MappingNode):
        line, column = _place(node.start_mark)
        reason = "the top of a configuration is a mapping (version: 1, ports: ...), not " + (
            "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        )
        raise ConfigError([Fault("", reason, name, line, column)])
    _Builder(document, name).build_document(node)
    return document


class _Loader(yaml.SafeLoader):
    """PyYAML up to the node tree; marks untagged nodes as such so that a tag in the file shows."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _QUOTED
        return _LIST if kind is yaml.SequenceNode else _MAPPING

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        try:
            if self._depth > MAX_DEPTH:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH} levels", mark)
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Builder:
    """Node tree -> data. Each method records places and faults in the document."""

    def __init__(self, document: Document, name: str) -> None:
        self._document = document
        self._name = name
        self._left = MAX_VALUES
        self._open: set[int] = set()  # ids of the nodes being built: an alias to one of them would never end

    def build_document(self, node: yaml.Node) -> None:
        self._document.data = self._build(node, ())

    def _fault(self, path: Path_, mark: Any, reason: str) -> None:
        line, column = _place(mark)
        self._document.faults.append(Fault(path_text(path), reason, self._name, line, column))

    def _build(self, node: yaml.Node, path: Path_) -> Any:
        self._document.values[path] = _place(node.start_mark)
        self._left -= 1
        if self._left < 0:
            line, column = _place(node.start_mark)
            reason = f"aliases expand to more than {MAX_VALUES} values: write the configuration out"
            raise ConfigError([Fault("", reason, self._name, line, column)])
        if node.tag not in (_PLAIN, _QUOTED, _LIST, _MAPPING):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self._refuse(path, node, f"the tag {tag} is not allowed: write the plain value")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._refuse(path, node, "an alias points at the value it is in: this would never end")
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _refuse(self, path: Path_, node: yaml.Node, reason: str) -> None:
        self._document.poisoned.add(path)
        self._fault(path, node.start_mark, reason)

    def _mapping(self, node: yaml.Node, path: Path_) -> dict[str | int, Any]:
        result: dict[str | int, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in (_PLAIN, _QUOTED):
                self._fault(path, key_node.start_mark, "a key must be a plain word")
                continue
            text = key_node.value
            key = int(text) if key_node.tag == _PLAIN and _INT.fullmatch(text) else text
            below = (*path, key)
            if key_node.tag == _PLAIN and text == "<<":
                self._fault(path, key_node.start_mark, "the merge key << is not supported: write the keys out")
                continue
            if key in result:
                first = self._document.keys[below][0]
                self._fault(below, key_node.start_mark, f"duplicate key: it stands in line {first} already, keep one")
                continue
            self._document.keys[below] = _place(key_node.start_mark)
            result[key] = self._build(value_node, below)
        return result

    def _scalar(self, node: yaml.ScalarNode, path: Path_) -> Any:
        text: str = node.value
        if node.tag == _QUOTED:
            return text
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _INT.fullmatch(text):
            return int(text)
        if trap := _trap(text):
            self._refuse(path, node, trap)
            return None
        if _FLOAT.fullmatch(text):
            return float(text)
        return text


def _trap(text: str) -> str:
    """Why a plain (unquoted) scalar must not be taken as it stands; "" when it may."""
    if _MAC_LIKE.fullmatch(text):
        whole = ":".join(pair.zfill(2) for pair in re.split("[:-]", text))
        return (
            f'a MAC address needs quotes: write "{whole}" '
            "(without them YAML readers take some addresses for numbers and drop zeros)"
        )
    if _SEXAGESIMAL.fullmatch(text):
        return f'{text} is a number in base 60 to some YAML readers: write "{text}" in quotes'
    if _OCTAL.fullmatch(text):
        digits = text.lstrip("+-0").removeprefix("o").lstrip("0") or "0"
        mode = f'"0{digits}"' if re.fullmatch(r"[0-7]{3}", digits) else f'"{text}"'
        return f"{text} is an octal number to some YAML readers: write {mode} for a file mode, {digits} for a number"
    return ""


def _place(mark: Any) -> Place:
    return (mark.line + 1, mark.column + 1)


_HINTS = (
    ("mapping values are not allowed here", "a ': ' where no key can stand: check the indentation, or quote the text"),
    ("could not find expected ':'", "a line that is neither 'key: value' nor a list item"),
    ("expected a single document", "a second document starts here: a configuration is one document, remove the '---'"),
    ("expected <block end>", "the indentation does not match the lines above"),
    ("expected '<document start>'", "the indentation does not match the lines above"),
    ("expected ',' or ']'", "a list in [ ] lacks a comma or its closing bracket"),
    ("expected ',' or '}'", "a mapping in { } lacks a comma or its closing brace"),
    ("found unexpected end of stream", "a quote, bracket or brace is still open at the end of the file"),
    ("found undefined alias", "an alias (*name) needs an anchor (&name) before it"),
    ("found duplicate anchor", "each anchor (&name) can be set once"),
)


def _syntax_fault(error: yaml.MarkedYAMLError, text: str, name: str) -> Fault:
    mark = error.problem_mark or error.context_mark
    line, column = _place(mark) if mark is not None else (0, 0)
    problem = error.problem or error.context or "cannot be read"
    reason = f"not valid YAML: {problem}"
    character = text[mark.index : mark.index + 1] if mark is not None else ""
    if character == "\t":
        reason = "not valid YAML: a tab cannot indent or separate: use spaces"
    elif "cannot start any token" in problem:
        reason = f"not valid YAML: {character} cannot start a value: put the text in quotes"
    else:
        marked = f"{problem} {error.context or ''}"
        reason = next((f"not valid YAML: {hint}" for sign, hint in _HINTS if sign in marked), reason)
        if (error.context or "").startswith("while") and error.context_mark and error.context_mark.line + 1 != line:
            reason += f" ({error.context} that starts in line {error.context_mark.line + 1})"
    return Fault("", reason, name, line, column)
