"""What the parts of the script for GPUs have printed, the bars that it is held against, and the table at the end.

Needs nothing but Python.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROW = re.compile(r"^(.+?) \| (right|proved|seen|WRONG|FAILED|SKIPPED) \| (.*)$")
MEASURE = re.compile(r"^# (\w+)=(\S+)$")
BAD = ("WRONG", "FAILED")
Parts = Mapping[str, set[str]]
"""The letters that were run, each with the subjects or scripts that it was limited to; empty: all."""


@dataclass(frozen=True)
class Bar:
    """What a measurement must reach: at least, or `most`. `star`: what would be better still."""

    name: str
    part: str
    key: str
    bar: float
    star: float | None = None
    most: bool = False

    def reached(self, value: float, target: float) -> bool:
        """Whether the value is as good as the target."""
        return value <= target if self.most else value >= target

    def verdict(self, value: float | None) -> str:
        """In a word."""
        if value is None or math.isnan(value):
            return "not measured"
        if self.star is not None and self.reached(value, self.star):
            return "star"
        return "reached" if self.reached(value, self.bar) else "MISSED"


BARS = (
    Bar("MoCo v3 ResNet-50 from JPEG, images/s", "e", "fed_resnet50", 1200, 1500),
    Bar("MoCo v3 ViT-S/16 from JPEG, images/s", "e", "fed_vit_small", 2800, 3500),
    Bar("MoCo v3 ViT-B/16 from JPEG, images/s", "e", "fed_vit_base", 850, 1130),
    Bar("idle share of the GPU, ResNet-50", "e", "idle_resnet50", 0.03, most=True),
    Bar("idle share of the GPU, ViT-S/16", "e", "idle_vit_small", 0.03, most=True),
    Bar("against a plain loop with PIL, ResNet-50", "e", "against_plain_resnet50", 3, 5),
    Bar("against a plain loop with PIL, ViT-S/16", "e", "against_plain_vit_small", 3, 5),
    Bar("launches in a step, ResNet-50", "c", "launches_resnet50", 1500, most=True),
    Bar("host stops in a step, ResNet-50", "c", "stops_resnet50", 0, most=True),
    Bar("host stops in a step, ViT-S/16", "c", "stops_vit_small", 0, most=True),
)


@dataclass
class Report:
    """All that is known so far."""

    device: str
    rows: list[dict[str, str]] = field(default_factory=list)
    measures: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of every part, and of each of its processes."""

    def take(self, part: str, line: str) -> None:
        """Remember a line that a part has printed, if it is a row or a measurement."""
        if row := ROW.match(line):
            self.rows.append({"part": part, "name": row[1], "verdict": row[2], "seen": row[3]})
        elif measure := MEASURE.match(line):
            with contextlib.suppress(ValueError):
                self.measures[measure[1]] = float(measure[2])

    def bars(self, parts: Parts) -> Iterator[tuple[Bar, float | None, str]]:
        """The bars of these parts: what was measured, and the verdict."""
        for bar in BARS:
            if bar.part in parts and (not parts[bar.part] or bar.key.endswith(tuple(parts[bar.part]))):
                value = self.measures.get(bar.key)
                yield bar, value, bar.verdict(value)

    def write(self, out: Path | None, parts: Parts) -> None:
        """Write results.json."""
        if out is None:
            return
        bars = [
            {"name": bar.name, "bar": bar.bar, "seen": value, "verdict": word} for bar, value, word in self.bars(parts)
        ]
        content = {"device": self.device, "seconds": self.seconds, "bars": bars, "measures": self.measures}
        (out / "results.json").write_text(json.dumps({**content, "rows": self.rows}, indent=1))


def table(report: Report, parts: Parts, gpu: bool) -> int:
    """Print what did not hold and the bars; how many of both there are."""
    bad = [row for row in report.rows if row["verdict"] in BAD]
    counts = {verdict: sum(row["verdict"] == verdict for row in report.rows) for verdict in (*BAD, "SKIPPED")}
    print(f"\n{len(report.rows)} rows, {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    for row in bad:
        print(f"  {row['part']}: {row['name']} | {row['verdict']} | {row['seen']}")
    missed = 0
    print(f"\n{'bar':48} {'at':>9} {'star':>7} {'seen':>10}" + ("" if gpu else "   (bars are a GPU's)"))
    for bar, value, word in report.bars(parts):
        at, seen = f"{'<=' if bar.most else '>='} {bar.bar:g}", "-" if value is None else f"{value:,.4g}"
        star = "" if bar.star is None else f"{bar.star:g}"
        print(f"{bar.name:48} {at:>9} {star:>7} {seen:>10}  {word if gpu else ''}".rstrip())
        missed += word in ("MISSED", "not measured")
    return len(bad) + (missed if gpu else 0)
