"""Lines that are cut short are passed over, and never spoil the next one."""

import json
from pathlib import Path

import pytest

from dist_ssl.runtime import jsonl


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    jsonl.append(path, [{"a": 1}, {"a": "ä\n"}])
    jsonl.append(path, [{"a": 3}])
    assert jsonl.read(path) == [{"a": 1}, {"a": "ä\n"}, {"a": 3}]


def test_there_are_no_lines_where_there_is_no_file(tmp_path: Path) -> None:
    assert jsonl.read(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize("cut", range(1, 18))
def test_a_line_cut_anywhere_costs_that_line_alone(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    whole = json.dumps({"step": 1, "b": "é"}, ensure_ascii=False).encode()
    assert len(whole) > 18
    path.write_bytes(b'{"step": 0}\n' + whole[:cut])
    assert jsonl.read(path) == [{"step": 0}]
    jsonl.append(path, [{"step": 2}])
    assert jsonl.read(path) == [{"step": 0}, {"step": 2}]


@pytest.mark.parametrize("depth", [200, 100_000])
def test_a_line_that_is_nested_deeply_costs_that_line_alone(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 0}\n{"a": ' + "[" * depth + "]" * depth + '}\n{"step": 2}\n')
    assert jsonl.read(path) == [{"step": 0}, {"step": 2}]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MOST_LINE", 50)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 0}\n{"a": "' + "x" * 500 + '"}\n{"step": 2}\n')
    assert jsonl.read(path) == [{"step": 0}, {"step": 2}]


def test_a_value_has_the_depth_and_the_number_of_values_that_are_allowed() -> None:
    assert jsonl.parsed(b"[" * 100 + b"]" * 100)
    assert jsonl.parsed("[" + "[]," * 200 + "1, 2]", 600)[-1] == 2
    assert jsonl.parsed('"[[["', 3) == "[[["
    for text in ("[" * 101 + "]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 100_000, "[1, 2, 3]"):
        with pytest.raises(ValueError, match=r"nested deeper than 100|more than 2 values"):
            jsonl.parsed(text, 10**6 if len(text) > 20 else 2)


def test_a_file_that_stays_open_has_its_lines_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with jsonl.open_to_append(path) as file:
        file.write('{"a": 1}\n')
        assert jsonl.read(path) == [{"a": 1}]
