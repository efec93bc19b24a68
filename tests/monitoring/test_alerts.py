"""Every alert fires for a sick run and is quiet for a healthy one, by the real promtool, and needs all its clauses."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.alert_form import Alert, rule
from monitoring.alert_rules import ALERTS, FILE, NAMED_ENDS, text
from monitoring.recordings import MEDIANS, RECORDED, SHARE_WINDOWS, recordings, shares
from tests.golden.agreed import agree
from tests.monitoring.promql import metrics_of, misused

MONITORING = FILE.parent
PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool")
SELECTED = {"run": "a", "method": "mocov3", "instance": "a", "job": "dist_ssl"}
OF_NODE = {"run": "a", "node": "1", "instance": "b", "job": "dist_ssl_node"}
"""Labels of the series of a run and of one of its nodes."""
STEPS = 120
"""Length of every series; a step is 5 minutes, so that the last 10 hours are known when the rules are judged."""
WELL = 90
"""Steps that a sick run was well before."""
CAUSES = {"train": 270, "data": 9, "save": 6, "probe": 15, "restore": 0, "start": 0, "queue": 0, "lost": 0}
"""Seconds of a step that a healthy run spends on each cause."""
Series = dict[str, str]


def steady(value: float, slope: float = 0.0) -> str:
    """A series that rises by `slope` a step."""
    return f"{value}{slope:+}x{STEPS}"


def turned(well: float, sick: float) -> str:
    """A gauge that changes from one value to another."""
    return f"{well}+0x{WELL - 1} {sick}+0x{STEPS - WELL}"


def counted(well: float, sick: float) -> str:
    """A counter whose rise a step changes."""
    return f"0{well:+}x{WELL - 1} {well * WELL}{sick:+}x{STEPS - WELL}"


def spent(**seconds: float) -> Series:
    """The account of a run that since it fell ill spends its time otherwise."""
    sick = {**dict.fromkeys(CAUSES, 0.0), **seconds}
    return {f"spent_seconds {cause}": counted(CAUSES[cause], sick[cause]) for cause in CAUSES}


HEALTHY: Series = {
    "up": steady(1),
    "node_up": steady(1),
    "node_gpu_use_ratio": steady(0.9),
    "node_used_memory_bytes": steady(1e11),
    "node_memory_bytes": steady(5e11),
    "node_free_bytes run": steady(1e12),
    "node_free_bytes cache": steady(1e11),
    "node_free_bytes shared memory": steady(1e8),
    "rank_work_seconds": steady(0.1),
    "slowest_rank_work_seconds": steady(0.12),
    "report_timestamp_seconds": steady(0, 300),
    "checkpoint_timestamp_seconds": steady(0, 300),
    "attempts_total": steady(1),
    "negative_similarity": steady(0.1),
    "effective_rank": steady(20),
    "knn_accuracy_ratio": steady(0.3, 0.001),
    "gradient_norm": steady(2),
    "loss": steady(5, -0.01),
    "image_size_pixels": steady(160),
    "teacher_distance_ratio": steady(0.05),
    "progress_ratio": steady(0.1, 0.001),
    "step": steady(0, 300),
    "epoch": steady(2),
    "images_per_second": steady(1000),
    "ranks": steady(8),
    "fetch_retries_total": steady(0, 0.5),
    "cache_misses_total": steady(0, 5),
    "cache_hits_total": steady(0, 100),
    "replaced_samples_total": steady(0, 100),
    "slow_images_total any": steady(0, 2000),
    "failed_saves_total": steady(0),
    "damaged_checkpoints_total": steady(0),
    "save_seconds": steady(20),
    "free_disk_bytes": steady(1e12, -1e8),
    "checkpoint_bytes": steady(1e9),
    "device_memory_ratio": steady(0.8),
    "host_memory_bytes": steady(4e9, 1e6),
    **{f"spent_seconds {cause}": steady(0, seconds) for cause, seconds in CAUSES.items()},
}
"""A run with nothing wrong, by the stems of its metrics and the values of their labels."""

SMALLER = {"image_size_pixels": turned(160, 224)}
GONE = {"up": ""}
SICK: dict[str, Series | list[Series]] = {
    "RunLost": [{"up": turned(1, 0)}, {**GONE, "up worker died": steady(0)}, {**GONE, "ended node lost": steady(1)}],
    **{
        name: [{**GONE, f"up {end}": steady(0)}, {**GONE, f"ended {end}": steady(1)}]
        for name, end in zip(("LossNotFinite", "PlansDiffer", "RunRefused"), NAMED_ENDS, strict=True)
    },
    "StoppedEarly": {"up": "", "progress_ratio": f"0.5+0x{STEPS - 6} stale"},
    "NoProgress": {"report_timestamp_seconds": f"0+300x{WELL} {300 * WELL}+0x{STEPS - WELL}"},
    "RestartLoop": {"attempts_total": f"1+0x{STEPS - 8} 2+1x8"},
    "CollapseToPoint": {"negative_similarity": turned(0.1, 0.995)},
    "CollapseOfDimensions": {"effective_rank": turned(20, 1.1)},
    "AccuracyFalling": {"knn_accuracy_ratio": turned(0.6, 0.4)},
    "GradientSpike": {"gradient_norm": f"2+0x{STEPS - 4} 30+0x4"},
    "LossRising": {"loss": turned(5, 8)},
    "TeacherStandsStill": {"teacher_distance_ratio": steady(0)},
    "ThroughputDrop": {"images_per_second": turned(1000, 600)},
    "DataStarvation": spent(train=225, data=75),
    "Straggler": {"slowest_rank_work_seconds": turned(0.12, 0.2)},
    "NodeLost": {"node_up": turned(1, 0)},
    "GPUsIdle": {"node_gpu_use_ratio": turned(0.9, 0.1)},
    "NodeMemoryNearlyFull": {"node_used_memory_bytes": turned(1e11, 4.9e11)},
    "NodeDiskNearlyFull": {"node_free_bytes cache": turned(1e11, 1e9)},
    "SlowStorage": {"fetch_retries_total": counted(0.5, 3)},
    "CacheTooSmall": {"cache_misses_total": counted(5, 200)},
    "UnreadableSamples": {"replaced_samples_total": counted(100, 6000)},
    "SlowDecoding": {"slow_images_total any": counted(0, 180000)},
    "CheckpointOld": {"checkpoint_timestamp_seconds": f"0+300x{WELL} {300 * WELL}+0x{STEPS - WELL}"},
    "NeverSaved": {"checkpoint_timestamp_seconds": ""},
    "SavesFail": {"failed_saves_total": f"0+0x{STEPS - 3} 1+0x3"},
    "CheckpointDamaged": {"damaged_checkpoints_total": f"0+0x{STEPS - 3} 1+0x3"},
    "SaveSlow": {"save_seconds": turned(20, 200)},
    "SaveStall": spent(train=240, save=60),
    "DiskNearlyFull": {"free_disk_bytes": turned(1e12, 1.5e9)},
    "DiskFilling": {"free_disk_bytes": steady(1e12, -4e9)},
    "GPUMemoryNearlyFull": {"device_memory_ratio": turned(0.8, 0.99)},
    "MemoryGrowing": {"host_memory_bytes": turned(4e9, 8e9)},
    "SlowProbe": spent(train=200, probe=100),
    "SlowStart": spent(train=200, start=60, restore=40),
    "GoodputLow": spent(train=120, queue=180),
    "LostWork": spent(train=100, lost=200),
    "FewerRanks": {"ranks": turned(8, 4)},
}
"""What is wrong with a run for which each alert must fire; of several, with each."""
OTHER_ENDS: list[Series] = [
    *({"up": "", f"{kind} worker died": steady(value)} for kind, value in (("up", 0), ("ended", 1))),
    *({f"up {end}": steady(1), f"ended {end}": steady(0)} for end in NAMED_ENDS),
]
QUIET: dict[str, list[Series]] = {
    "RunLost": [
        {"node_up": turned(1, 0)},
        {"ended worker died": steady(0)},
        {**GONE, **{f"up {end}": steady(0) for end in NAMED_ENDS}},
        {**GONE, **{f"ended {end}": steady(1) for end in NAMED_ENDS}},
    ],
    **dict.fromkeys(("LossNotFinite", "PlansDiffer", "RunRefused"), OTHER_ENDS),
    "NodeLost": [{"up": turned(1, 0)}],
    "StoppedEarly": [
        {"up": "", "progress_ratio": f"1+0x{STEPS - 6} stale"},
        {"up": turned(1, 0), "progress_ratio": f"0.5+0x{STEPS - 6} stale"},
        {"up": "", "progress_ratio": steady(0.5)},
        {"up": "", "ended refused": steady(1), "progress_ratio": f"0.5+0x{STEPS - 6} stale"},
    ],
    "LossRising": [{"loss": turned(5, 8), **SMALLER}],
    "ThroughputDrop": [{"images_per_second": turned(1000, 600), **SMALLER}],
    "TeacherStandsStill": [{"teacher_distance_ratio": steady(0), "step": steady(50)}],
    "CacheTooSmall": [
        {"cache_misses_total": counted(5, 200), "epoch": steady(1)},
        {"cache_misses_total": counted(0, 0.5), "cache_hits_total": steady(0)},
    ],
    "MemoryGrowing": [{"host_memory_bytes": turned(4e9, 8e9), "attempts_total": turned(1, 2)}],
    "NeverSaved": [{"checkpoint_timestamp_seconds": "", "step": steady(0)}],
    "FewerRanks": [{"ranks": turned(4, 8)}],
    "AccuracyFalling": [{"knn_accuracy_ratio": turned(0.5, 0.45)}],
    "RestartLoop": [{"attempts_total": turned(1, 2)}],
}
"""Runs that look like the sick ones and need nobody."""


def case(alert: Alert, changes: Series, fires: bool, names: list[str]) -> dict[str, Any]:
    """One test of promtool: whether the alert fires at the end of a healthy run with changes, under each name."""
    run = {labelled(stem): values for stem, values in {**HEALTHY, **changes}.items() if values}
    asked = [name for name in run if name.partition("{")[0] in alert.expression]  # of the others a rule sees nothing
    series = [{"series": name, "values": run[name]} for name in asked]
    known = rule(alert)
    own = owner(alert, changes)
    notes = {key: filled(value, own) for key, value in known["annotations"].items()}
    expected = [{"exp_labels": {**own, **known["labels"]}, "exp_annotations": notes}] if fires else []
    judged = [{"eval_time": f"{5 * STEPS}m", "alertname": name, "exp_alerts": expected} for name in names]
    return {"interval": "5m", "input_series": series, "alert_rule_test": judged}


def owner(alert: Alert, changes: Series) -> dict[str, str]:
    """The labels with which an alert fires: those of the run, or of a node."""
    if "dist_ssl_ended{" in alert.expression:
        end = next((stem.partition(" ")[2] for stem in changes if stem.startswith(("up ", "ended "))), "")
        return {**SELECTED, **({"end": end} if end else {})}
    if "_node" in alert.expression:
        return {**OF_NODE, "place": "cache"} if "place=" in alert.expression else OF_NODE
    cause = re.search(r'cause="(\w+)"', alert.expression)
    return {**SELECTED, "cause": cause[1]} if cause else SELECTED


def filled(note: str, labels: dict[str, str]) -> str:
    """A text of an alert with the values of its labels."""
    for name, value in labels.items():
        note = note.replace(f"{{{{ $labels.{name} }}}}", value)
    return note


def labelled(stem: str) -> str:
    """A series' name with its labels, from its stem and the value of its own label."""
    name, _, value = stem.partition(" ")
    labels = dict(OF_NODE if name.startswith("node_") else SELECTED)
    if value and name == "up":
        labels["end"] = value
    elif value:
        [metric] = metrics_of(f"dist_ssl_{name}")
        labels[metric.label] = value
    else:
        assert name in ("up", "node_up") or metrics_of(f"dist_ssl_{name}"), "every series is one of the tables"
    exported = "up" if name in ("up", "node_up") else f"dist_ssl_{name}"
    return f"{exported}{{{','.join(f'{key}={value!r}' for key, value in labels.items())}}}".replace("'", '"')


def cases(alert: Alert, names: list[str]) -> list[dict[str, Any]]:
    """All tests of an alert, for rules under these names."""
    quiet = [case(alert, changes, False, names) for changes in ({}, *QUIET.get(alert.name, []))]
    sick = SICK[alert.name]
    return [*(case(alert, one, True, names) for one in (sick if isinstance(sick, list) else [sick])), *quiet]


def failures(folder: Path, rules: list[dict[str, Any]], tests: list[dict[str, Any]]) -> str:
    """What promtool says of rules that do not pass tests."""
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "5m", "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(whole))
    ran = subprocess.run([str(PROMTOOL), "test", "rules", str(folder / "tests.yml")], capture_output=True, text=True)
    return ran.stdout + ran.stderr


def minutes(window: str) -> int:
    """The length of a window of a query."""
    return int(window[:-1]) * {"m": 1, "h": 60, "d": 1440}[window[-1]]


def expected() -> dict[str, float]:
    """What is recorded of a run that waits for data since 20 minutes, and whose gauges rise by 1 a step."""
    known = {shares(window): 20 / min(minutes(window), 5 * STEPS) for window in SHARE_WINDOWS}
    return known | {f"run:{metric}:median{window}": STEPS - minutes(window) / 10 for metric, window in MEDIANS.items()}


def judged(recorded: str, name: str) -> dict[str, Any]:
    """A test that a rule of some name records what the shipped one does; a median may lie half a step off."""
    value, of_cause = expected()[recorded], "share" in recorded
    labels = {**SELECTED, **({"cause": "data"} if of_cause else {})}
    chosen = f'{name}{{cause="data"}}' if of_cause else name
    shown = ", ".join(f'{key}="{value}"' for key, value in labels.items())
    return {
        "expr": f"abs({chosen} - {value}) <= bool {0.01 * value if of_cause else 0.6}",
        "eval_time": f"{5 * STEPS}m",
        "exp_samples": [{"labels": f"{{{shown}}}", "value": 1}],
    }


def of_recordings(rules: dict[str, str]) -> dict[str, Any]:
    """A test of promtool of rules, by their names, each of which stands for one that is shipped."""
    waits = {"train": f"0+300x{STEPS - 4} {300 * (STEPS - 4)}+0x3", "data": f"0+0x{STEPS - 4} 300+300x3"}
    series = {labelled(f"spent_seconds {cause}"): waits.get(cause, steady(0)) for cause in CAUSES}
    series |= {labelled(metric.removeprefix("dist_ssl_")): steady(0, 1) for metric in MEDIANS}
    return {
        "interval": "5m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [judged(recorded, name) for name, recorded in rules.items()],
    }


def mutants(alert: Alert) -> list[str]:
    """The expressions in which a clause is taken out or inverted, a comparison turned round, or a label another one."""
    parts = re.split(r" (and|unless|or) ", alert.expression)
    clauses, words = parts[::2], parts[1::2]
    found = []
    for number, word in enumerate(words, 1):
        inverted = {"and": "unless", "unless": "and", "or": "and"}[word]
        found.append(joined(clauses, [*words[: number - 1], inverted, *words[number:]]))
        kept = [*clauses[:number], *clauses[number + 1 :]]
        others = [*words[: number - 1], *words[number:]]
        found.append(joined(kept, others))
        if word in ("and", "or"):
            found.append(joined(clauses[1:], words[1:]) if number == 1 else joined(kept, others))
    turns = {" > ": " < ", " < ": " > ", " == ": " != ", " >= ": " < "}
    for sign in re.finditer(r" (>=|==|>|<) ", alert.expression):
        found.append(alert.expression[: sign.start()] + turns[sign[0]] + alert.expression[sign.end() :])
    for sign in re.finditer(r',?\w+!~"([\w |]+)"', alert.expression):
        before, after = alert.expression[: sign.start()], alert.expression[sign.end() :]
        found += [before + after, before + sign[0].replace("!~", "=~") + after]
        for name in sign[1].split("|"):
            kept = "|".join(other for other in sign[1].split("|") if other != name)
            found.append(before + sign[0].replace(sign[1], kept) + after)
    for sign in re.finditer(r"(\w+)=(~?)\"([\w |]+)\"", alert.expression):
        found.append(alert.expression[: sign.start()] + f'{sign[1]}={sign[2]}"none"' + alert.expression[sign.end() :])
    if "start|restore" in alert.expression:
        found += [alert.expression.replace('=~"start|restore"', f'="{cause}"') for cause in ("start", "restore")]
    if "place=" in alert.expression:
        found.append(alert.expression.replace('{place=~"run|cache"}', ""))
    return sorted(set(found))


def joined(clauses: list[str], words: list[str]) -> str:
    """Clauses with the words between them."""
    return clauses[0] + "".join(f" {word} {clause}" for word, clause in zip(words, clauses[1:], strict=True))


@pytest.mark.golden
def test_the_file_is_what_is_generated() -> None:
    agree(FILE, text())


def test_alerts_use_metrics_of_the_table_by_their_type() -> None:
    for alert in ALERTS:
        assert metrics_of(alert.expression) or alert.name == "NodeLost"
    for expression in (*(alert.expression for alert in ALERTS), *RECORDED.values()):
        metrics_of(expression)
        assert not misused(expression)


def test_what_is_recorded_is_what_the_alerts_use() -> None:
    used = {name for alert in ALERTS for name in re.findall(r"\w+:\w+:\w+", alert.expression)}
    assert used == RECORDED.keys()


def test_every_alert_has_an_entry_in_the_runbook_and_no_other_has() -> None:
    entries = re.findall(r"^## (\w+)$", (MONITORING / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert entries == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        assert rule(alert)["annotations"]["runbook"].endswith(f"#{alert.name.lower()}")


def test_every_alert_has_a_sick_run() -> None:
    assert [alert.name for alert in ALERTS] == list(SICK)
    assert QUIET.keys() <= SICK.keys()


@with_promtool
@pytest.mark.parametrize("words", [("rules", "alerts.yml"), ("config", "prometheus.yml")], ids=["rules", "config"])
def test_promtool_accepts_what_is_shipped(words: tuple[str, str]) -> None:
    command = [str(PROMTOOL), "check", words[0], str(MONITORING / words[1])]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@with_promtool
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_for_the_sick_alone_and_would_not_without_one_of_its_clauses(
    alert: Alert, tmp_path: Path
) -> None:
    changed = {f"changed_{number}": expression for number, expression in enumerate(mutants(alert))}
    rules = [{**rule(alert), "alert": name, "expr": expression} for name, expression in changed.items()]
    recorded = [known for known in recordings()["rules"] if known["record"] in alert.expression]
    output = failures(tmp_path, [*recorded, rule(alert), *rules], cases(alert, [alert.name, *changed]))
    caught = set(re.findall(r"alertname: ?(\w+)", output))
    assert alert.name not in caught, output
    assert changed
    assert not {name: expression for name, expression in changed.items() if name not in caught}, output


@with_promtool
def test_what_is_recorded_has_its_value_and_would_not_with_another_window_or_without_a_part(tmp_path: Path) -> None:
    changed = [(name, changed) for name, own in RECORDED.items() for changed in changed_recordings(own)]
    names = {f"changed:rule:{number}": name for number, (name, _) in enumerate(changed)}
    rules = [{"record": name, "expr": own} for name, (_, own) in zip(names, changed, strict=True)]
    output = failures(
        tmp_path, [*recordings()["rules"], *rules], [of_recordings({name: name for name in RECORDED} | names)]
    )
    caught = set(re.findall(r"abs\(([\w:]+)", output))
    assert not caught & RECORDED.keys(), output
    assert not [changed[int(name.rpartition(":")[2])] for name in names if name not in caught], output


def changed_recordings(expression: str) -> list[str]:
    """The expression with another window, another quantile, or without one of its operands."""
    found = [re.sub(r"\[\w+\]", f"[{window}]", expression) for window in ("10m", "3h")]
    if "quantile" in expression:
        return [*found, expression.replace("0.5", "0.9")]
    part, _, whole = expression.partition(" / ignoring (cause) group_left ")
    return [*found, part, f"{part} / {whole.removeprefix('sum without (cause) ')}"]
