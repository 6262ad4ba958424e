# SPDX-License-Identifier: Apache-2.0
"""YAML reading: what a plain word means, what is refused, and where each fault is said to be."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switch.config.loader import MAX_DEPTH, decode, path_text, read_file, read_yaml
from switch.config.reading import MAX_BYTES
from switch.errors import ConfigError, Fault


def faults_of(text: str) -> list[Fault]:
    """Every fault of reading, whether it ended the reading or not."""
    try:
        return read_yaml(text, "f").faults
    except ConfigError as error:
        return error.faults


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1", 1),
        ("-5", -5),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1.5", 1.5),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("n", "n"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        (".inf", ".inf"),
        ("256M", "256M"),
        ("127.0.0.1:9480", "127.0.0.1:9480"),
        (":9480", ":9480"),
        ('"10:20"', "10:20"),
        ('"0660"', "0660"),
        ("'52:54:00:12:34:56'", "52:54:00:12:34:56"),
        ('"true"', "true"),
        ("[1, a]", [1, "a"]),
        ("{b: 1, 2: x}", {"b": 1, 2: "x"}),
    ],
)
def test_plain_words_mean_what_they_look_like(written: str, value: object) -> None:
    document = read_yaml(f"a: {written}\n", "f")
    assert document.data == {"a": value}
    assert type(document.data["a"]) is type(value)
    assert document.faults == []


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "reason"),
    [
        # traps of YAML 1.1
        ("a: 52:54:00:12:34:56", 1, 4, "a", 'a MAC address needs quotes: write "52:54:00:12:34:56"'),
        ("a: aa:bb:cc:dd:ee:ff", 1, 4, "a", "a MAC address needs quotes"),
        ("a: [0:1:2:3:4:5]", 1, 5, "a[0]", 'write "00:01:02:03:04:05"'),
        ("a: 10:20", 1, 4, "a", "base 60"),
        ("a: 190:20:30", 1, 4, "a", "base 60"),
        ("a:\n  mode: 0660", 2, 9, "a.mode", 'write "0660" for a file mode, 660 for a number'),
        ("a: 0o660", 1, 4, "a", 'write "0660"'),
        ("a: 010", 1, 4, "a", "octal"),
        ("a: 08", 1, 4, "a", "octal"),
        # structure
        ("a: 1\nb: 2\na: 3", 3, 1, "a", "duplicate key: it stands in line 1 already"),
        ("p:\n- {x: 1, x: 2}", 2, 10, "p[0].x", "duplicate key"),
        ("a: {<<: {b: 1}}", 1, 5, "a", "merge key <<"),
        ("? [1, 2]\n: 3", 1, 3, "", "a key must be a plain word"),
        (
            "a: !!python/object/apply:os.system [ls]",
            1,
            4,
            "a",
            "the tag !!python/object/apply:os.system is not allowed",
        ),
        ("a: !!str 10", 1, 4, "a", "the tag !!str is not allowed"),
        ("a: !secret x", 1, 4, "a", "the tag !secret is not allowed"),
        ("a: &x [*x]", 1, 4, "a[0]", "an alias points at the value it is in"),
        ("a: &x {b: *x}", 1, 4, "a.b", "an alias points at the value it is in"),
        # syntax
        ("a:\n\tb: 1", 2, 1, "", "a tab cannot indent or separate: use spaces"),
        ("a: 1\n  b: 2", 2, 4, "", "a ': ' where no key can stand"),
        ("a: [1, 2", 1, 9, "", "lacks a comma or its closing bracket"),
        ("a: {b: 1", 1, 9, "", "lacks a comma or its closing brace"),
        ("a: 'x", 1, 6, "", "a quote, bracket or brace is still open"),
        ("a: @x", 1, 4, "", "@ cannot start a value: put the text in quotes"),
        ("a: *x", 1, 4, "", "an alias (*name) needs an anchor"),
        ("a: 1\nb", 2, 2, "", "neither 'key: value' nor a list item"),
        ("a:\n  - b\n c: 1", 3, 2, "", "the indentation does not match"),
        ("a: 1\n---\nb: 2", 2, 1, "", "a second document starts here"),
        ("a: \x07", 1, 4, "", "the character U+0007 is not allowed"),
        ("a: 1\nb: \x00", 2, 4, "", "the character U+0000 is not allowed"),
        # shape
        ("", 0, 0, "", "is empty"),
        ("# nothing\n", 0, 0, "", "is empty"),
        ("---\n...\n", 0, 0, "", "is empty"),
        ("- a", 1, 1, "", "not a list"),
        ("hello", 1, 1, "", "not a single value"),
    ],
)
def test_refused_with_its_place(text: str, line: int, column: int, path: str, reason: str) -> None:
    (fault,) = faults_of(text)
    assert reason in fault.reason
    assert (fault.file, fault.line, fault.column, fault.path) == ("f", line, column, path)


def test_reading_goes_on_after_a_trap() -> None:
    found = faults_of("a: 0660\nb: 10:20\nc: {d: 1, d: 2}\ne: !x 1\n")
    assert [fault.line for fault in found] == [1, 2, 3, 4]


def test_the_first_of_two_equal_keys_counts() -> None:
    assert read_yaml("a: 1\na: 2", "f").data == {"a": 1}


def test_anchors_and_aliases_work() -> None:
    assert read_yaml("a: &v {x: [1]}\nb: *v\n", "f").data == {"a": {"x": [1]}, "b": {"x": [1]}}


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (fault,) = faults_of("\n".join(lines))
    assert "aliases expand to more than" in fault.reason
    assert fault.line == 1  # where the value stands that was repeated


def test_deep_nesting_is_refused() -> None:
    (fault,) = faults_of("a: " + "[" * 10_000)
    assert f"nested deeper than {MAX_DEPTH} levels" in fault.reason


def test_places_of_keys_and_values() -> None:
    document = read_yaml("ports:\n  - name: vm1\n    vlan: {access: 10}\n", "f")
    assert document.place(("ports", 0, "vlan", "access")) == (3, 20)
    assert document.place(("ports", 0, "vlan", "access"), of_key=True) == (3, 12)
    assert document.place(("ports", 0, "queues")) == (2, 5)  # missing: where its mapping starts
    assert document.place(("ports", 9, "x")) == (2, 3)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("ports", 1, "vlan", "access"), "ports[1].vlan.access"),
        (("ports", 0, "vlan", "trunk", 2), "ports[0].vlan.trunk[2]"),
        (("a b",), "'a b'"),
        (("x", "a.b"), "x.'a.b'"),
    ],
)
def test_path_text(path: tuple[str | int, ...], text: str) -> None:
    assert path_text(path) == text


def test_bytes_must_be_utf8() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(b"a: 1\nb: caf\xe9\n", "f")
    assert str(caught.value) == "f:2:7: byte 0xe9 is not UTF-8: save the file as UTF-8"
    with pytest.raises(ConfigError, match="not UTF-8"):
        decode("a: 1".encode("utf-16"), "f")


def test_a_byte_order_mark_is_no_matter() -> None:
    assert read_yaml(decode(b"\xef\xbb\xbfa: 1\n", "f"), "f").data == {"a": 1}


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (MAX_BYTES + 1))
    sparse = tmp_path / "sparse.yaml"
    with sparse.open("wb") as out:
        out.truncate(1 << 40)
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "slow")
    monkeypatch.setattr("switch.config.reading.PATIENCE", 0.05)
    rows = [
        (tmp_path / "missing.yaml", "no such file or directory: check the path"),
        (tmp_path, "it is a directory, name a file"),
        (huge, "is larger than 8 MiB"),
        (sparse, "is larger than 8 MiB"),
        (Path("/dev/zero"), "it is a device, name a file"),
        (Path("/dev/null"), "it is a device, name a file"),
        (tmp_path / "pipe", "it is a pipe into which nobody writes"),
        (tmp_path / "slow", "it is a pipe whose writer did not end within"),
    ]
    writer = os.open(tmp_path / "slow", os.O_RDWR)
    os.write(writer, b"version: 1")
    for path, reason in rows:
        with pytest.raises(ConfigError) as caught:
            read_file(path)
        assert caught.value.faults[0].file == str(path)
        assert reason in str(caught.value)
    os.close(writer)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()  # as of `swctl validate <(make-config)`
    text = b"#" * 200_000  # more than the pipe holds

    def write() -> None:
        with os.fdopen(writer, "wb") as out:
            out.write(text)

    thread = threading.Thread(target=write)
    thread.start()
    assert read_file(Path(f"/dev/fd/{reader}")) == text.decode()
    thread.join()
    os.close(reader)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)  # root may read everything, so the refusal is made here
    with pytest.raises(ConfigError, match="permission denied: check owner and mode of the file"):
        read_file(tmp_path / "secret.yaml")


@given(st.text(alphabet=st.sampled_from("ab:- \n\t[]{}&*!|>'\"#0189,?%@`<.~\x00é"), max_size=60))
def test_any_text_gives_data_or_faults_with_a_place(text: str) -> None:
    for fault in faults_of(text):
        assert fault.file == "f"
        assert fault.reason
        assert (fault.line > 0 and fault.column > 0) or "is empty" in fault.reason


@given(st.binary(max_size=60))
def test_any_bytes_give_data_or_faults(raw: bytes) -> None:
    try:
        text = decode(raw, "f")
    except ConfigError as error:
        found = error.faults
    else:
        found = faults_of(text)
    assert all(fault.file == "f" and fault.reason for fault in found)
