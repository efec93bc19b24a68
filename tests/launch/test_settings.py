"""The words of a command line become a config or an error that helps, and a resume may change machine keys alone."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from dist_ssl.errors import ConfigError
from launch import science_keys, settings
from launch.run_dir import PROJECT
from launch.sweep import expand

CONFIGS = PROJECT / "configs"

SCIENCE_TOP = {
    *("epochs", "extend", "batch_size", "lanes", "window", "seed", "precision", "ema", "init", "init_sha256"),
    *("method", "encoder", "aux", "optim", "schedule", "difficulty", "views", "data", "engine"),
}
MACHINE_TOP = {
    *("nodes", "ranks_per_node", "threads", "decode_threads", "log_every", "timeout", "start_timeout"),
    *("save_every", "keep_last", "keep_every"),
    *("runs", "name", "resume", "probe", "metrics", "tracker", "cluster", "wait", "dry_run"),
}
MACHINE_IN_SCIENCE = {
    *(
        "data.path",
        "data.manifest",
        "data.source",
        "data.cache",
        "data.cache_bytes",
        "data.allow_pipe",
        "data.ahead_bytes",
    ),
    *("data.loader_process", "data.verify"),
    *("engine._target_", "engine.deterministic", "engine.accumulate"),
    *("engine.compile", "engine.activation_checkpointing"),
    *("engine.block_parameters", "engine.reshard", "engine.cpu_offload", "engine.replicate"),
    *("engine.stage", "engine.config.key"),
}


EVERYTHING = ["aux=rotation", "engine=fsdp", "+engine.stage=3", "+engine.config.key=1", "tracker=[wandb,mlflow]"]
"""A config with the keys of all engines and trackers."""
DEFAULTS = settings.compose(EVERYTHING, CONFIGS)
LEAVES = dict(science_keys.leaves(DEFAULTS))
SCIENCE = sorted(science_keys.science(DEFAULTS))
MACHINE = sorted(LEAVES.keys() - set(SCIENCE))


def changed(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The config with another value at a dotted key."""
    other = copy.deepcopy(config)
    *way, last = key.split(".")
    node = other
    for name in way:
        node = node[name]
    node[last] = "something else"
    return other


def test_the_defaults_are_plain_values_of_every_group() -> None:
    assert DEFAULTS["method"]["_target_"] == "dist_ssl.methods.mocov3.MoCoV3"
    assert DEFAULTS["data"]["source"] == "demo"
    assert all(isinstance(v, bool | int | float | str | list | type(None)) for v in LEAVES.values())
    assert "defaults" not in DEFAULTS


def test_words_of_the_command_line_win() -> None:
    found = settings.compose(["optim=sgd", "optim.base_lr=0.5", "nodes=2", "+method.extra=1"], CONFIGS)
    assert found["optim"]["_target_"] == "dist_ssl.optim.recipes.SGD"
    assert (found["optim"]["base_lr"], found["nodes"], found["method"]["extra"]) == (0.5, 2, 1)
    assert found["epochs"] == DEFAULTS["epochs"]


@pytest.mark.parametrize("group", sorted({path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"recipe"}))
def test_every_option_of_every_group_composes(group: str) -> None:
    for path in (CONFIGS / group).glob("*.yaml"):
        words = ["data.path=somewhere"] if group == "data" and path.stem in ("shards", "folder") else []
        assert group in settings.compose([f"{group}={path.stem}", *words], CONFIGS)


@pytest.mark.parametrize(
    ("word", "named", "remedy"),
    [
        ("ndoes=4", "'ndoes'", "'nodes'"),
        ("method.temprature=1", "'method.temprature'", "'method.temperature'"),
        ("batchsize=4", "'batchsize'", "'batch_size'"),
        ("views.view1.croop_min=0.1", "'views.view1.croop_min'", "'views.view1.crop_min'"),
        ("probee=knn", "'probee'", "'probe'"),
        ("method=mocov7", "method=mocov7", "'mocov3'"),
        ("encoder=resnet81", "encoder=resnet81", "'resnet18'"),
        ("engine=zzz", "engine=zzz", "Valid names: ddp, deepspeed, fsdp"),
        ("nodes", "'nodes'", "method=mocov3"),
        ("nodes=[1", "'nodes=[1'", "method=mocov3"),
        ("data=shards", "data.path", "data.path=..."),
        ("epochs=${nope}", "nope", "Correct the command line"),
        ("method=null", "method=null does not exist", "Valid names: byol"),
        ("method=3", "method=3 does not exist", "Valid names: byol"),
        ("views={a: 5}", "views={a: 5} does not exist", "Valid names: "),
        ("cluster=null", "cluster=null does not exist", "Valid names: allocation, auto, local, slurm, torchrun"),
        ("data.mean.7=1", "data.mean.7", ""),
        ("epochs.more=1", "epochs.more", ""),
    ],
)
def test_a_word_that_cannot_be_is_named_with_its_remedy(word: str, named: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as raised:
        settings.compose([word], CONFIGS)
    assert named in raised.value.problem
    assert remedy in raised.value.remedy
    assert raised.value.remedy


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed"])
def test_a_key_of_another_choice_is_refused_with_that_choice(engine: str) -> None:
    with pytest.raises(ConfigError) as raised:
        settings.compose([f"engine={engine}", "engine.bitwise=true", "engine.virtual_ranks=4"], CONFIGS)
    assert raised.value.problem == "engine.bitwise=true is an option of engine=ddp only."
    assert raised.value.remedy == "Choose engine=ddp, or leave it out."
    with pytest.raises(ConfigError, match=r"engine.cpu_offload=true is an option of engine=fsdp only"):
        settings.compose(["engine.cpu_offload=true"], CONFIGS)


def test_an_error_leaves_the_next_composition_alone() -> None:
    for word in ("method=mocov7", "nodes"):
        with pytest.raises(ConfigError):
            settings.compose([word], CONFIGS)
    assert settings.compose(EVERYTHING, CONFIGS) == DEFAULTS


def test_the_number_of_virtual_ranks_belongs_to_a_run_for_life() -> None:
    began = settings.compose(["engine=ddp", "engine.bitwise=true", "engine.virtual_ranks=4"], CONFIGS)
    for words in ([], ["engine=fsdp"], ["engine.bitwise=true", "engine.virtual_ranks=8"]):
        with pytest.raises(ConfigError, match=r"engine.virtual_ranks=(None|8) is not what the run began with \(4\)"):
            science_keys.check_resume(began, settings.compose(words, CONFIGS))
    science_keys.check_resume(settings.compose([], CONFIGS), settings.compose(["engine=fsdp"], CONFIGS))
    for words in (["engine.bitwise=true"], ["engine.bitwise=true", "engine.virtual_ranks=4"]):
        with pytest.raises(ConfigError, match="it began without virtual ranks") as raised:
            science_keys.check_resume(settings.compose([], CONFIGS), settings.compose(words, CONFIGS))
        assert "start a new run" in raised.value.remedy


def test_every_top_level_key_is_science_or_machine_on_purpose() -> None:
    assert not SCIENCE_TOP & MACHINE_TOP
    assert set(DEFAULTS) == SCIENCE_TOP | MACHINE_TOP, (
        "Decide whether a resume may change the new key: list it here, and in launch/settings.py if it may."
    )
    assert {key.partition(".")[0] for key in SCIENCE} == SCIENCE_TOP
    assert {key for key in MACHINE if key.partition(".")[0] in SCIENCE_TOP} == MACHINE_IN_SCIENCE


@pytest.mark.parametrize("key", SCIENCE)
def test_a_resume_refuses_other_science_by_name(key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        science_keys.check_resume(DEFAULTS, changed(DEFAULTS, key))
    assert raised.value.problem.startswith(f"{key}=something else ")
    assert f"({LEAVES[key]})" in raised.value.problem
    assert "new run" in raised.value.remedy


@pytest.mark.parametrize("key", MACHINE)
def test_a_resume_takes_other_machine_keys(key: str) -> None:
    science_keys.check_resume(DEFAULTS, changed(DEFAULTS, key))


def test_a_resume_refuses_another_clip_because_the_weights_depend_on_it() -> None:
    with pytest.raises(ConfigError, match=r"engine\.clip"):
        science_keys.check_resume(DEFAULTS, changed(DEFAULTS, "engine.clip"))


def test_another_engine_takes_over_the_keys_that_it_has_too() -> None:
    began = ["engine=fsdp", "engine.reshard=false", "engine.clip=1.0", "nodes=2"]
    words = settings.of_another_choice(began, ["engine=ddp", "nodes=4"], "engine", CONFIGS)
    assert words == ["engine=fsdp", "engine.clip=1.0", "nodes=2"]
    config = settings.compose([*words, "engine=ddp"], CONFIGS)
    assert (config["engine"]["_target_"], config["engine"]["clip"]) == ("dist_ssl.engines.ddp.DDP", 1.0)
    science_keys.check_resume(settings.compose(began, CONFIGS), config)
    for newer in (["nodes=4"], ["engine.clip=2.0"], ["engine=fsdp"]):
        assert settings.of_another_choice(began, newer, "engine", CONFIGS) == began


def test_another_tracker_leaves_the_keys_of_the_former_out() -> None:
    began = ["tracker=[wandb,mlflow]", "tracker.wandb.mode=online", "tracker.mlflow.experiment=a", "nodes=2"]
    for words, kept in ((["tracker=none"], [began[0], began[3]]), (["tracker=mlflow"], [began[0], *began[2:]])):
        assert settings.of_another_choice(began, words, "tracker", CONFIGS) == kept
    assert settings.compose([*kept, *words], CONFIGS)["tracker"]["mlflow"]["experiment"] == "a"


def test_keys_of_deepspeeds_own_stay_with_it_alone() -> None:
    began = ["engine=deepspeed", "engine.stage=3", "+engine.config.zero_optimization.overlap_comm=true", "nodes=2"]
    for words, kept in ((["engine=ddp"], [began[0], began[3]]), (["engine=deepspeed", "engine.stage=1"], began)):
        assert settings.of_another_choice(began, words, "engine", CONFIGS) == kept
    now = settings.compose(["engine=deepspeed", "engine.stage=1"], CONFIGS)
    science_keys.check_resume(settings.compose(began, CONFIGS), {**now, "nodes": 2})


def test_a_resume_refuses_science_that_is_new_or_gone() -> None:
    with_more = {**DEFAULTS, "encoder": {**DEFAULTS["encoder"], "depth": 1}}
    for began, now in ((DEFAULTS, with_more), (with_more, DEFAULTS)):
        with pytest.raises(ConfigError, match=r"encoder\.depth"):
            science_keys.check_resume(began, now)


def test_a_resume_does_not_mind_the_run_folders_own_format() -> None:
    science_keys.check_resume({"format": 1, **DEFAULTS}, DEFAULTS)


def test_an_unknown_folder_of_configs_is_not_composed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        settings.compose([], tmp_path)


def test_a_recipe_without_a_plus_is_answered_with_the_plus() -> None:
    with pytest.raises(ConfigError, match="has no recipe to replace") as raised:
        settings.compose(["recipe=demo_byol"], CONFIGS)
    assert raised.value.remedy == "Add one: +recipe=..."


def test_words_after_a_recipe_win() -> None:
    found = settings.compose(["+recipe=mocov2_r50_in1k_800ep", "epochs=3", "encoder=resnet18"], CONFIGS)
    assert (found["epochs"], found["encoder"]["name"], found["method"]["slots"]) == (3, "resnet18", 65536)


def of(key: str) -> list[str]:
    """The overrides without which there is no such key."""
    return ["data=folder", "data.path=x"] if key == "data.into" else []


@pytest.mark.parametrize("key", settings.PLACES)
@pytest.mark.parametrize(
    "folder", ["date=1", "it's", "a,b", "(x)", "[x", "set [v2]", "caf\u00e9=1", "C:\\x=1", "a\\'=", "=\\"]
)
def test_a_folder_is_meant_as_it_is_whatever_hydra_would_read_into_it(key: str, folder: str) -> None:
    found = settings.compose([*of(key), f"{key}=/data/{folder}"], CONFIGS)
    assert dict(science_keys.leaves(found))[key] == f"/data/{folder}"


@pytest.mark.parametrize("key", settings.TEXTS)
@pytest.mark.parametrize("text", ["007", "2012", "1.5", "1e3", "true", "nan", "it's"])
def test_text_that_looks_like_a_number_stays_text(key: str, text: str) -> None:
    assert dict(science_keys.leaves(settings.compose([*of(key), f"{key}={text}"], CONFIGS)))[key] == text


def test_text_may_still_be_left_out() -> None:
    found = settings.compose(["name=null", "data.cache=null"], CONFIGS)
    assert (found["name"], found["data"]["cache"]) == (None, None)


def test_in_a_sweep_commas_part_folders_and_the_rest_is_meant_as_it_is() -> None:
    assert expand(["data.path=/a,/b", "runs=/c=1"]) == [[f"data.path=/{name}", "runs=/c=1"] for name in "ab"]


def test_of_another_value_that_hydra_cannot_read_its_quotes_are_named() -> None:
    with pytest.raises(ConfigError, match="is not of the form key=value") as error:
        settings.compose(["encoder=a=b"], CONFIGS)
    advice = """Write method=mocov3, for example; put text with special characters in quotes: "encoder='...'"."""
    assert advice in str(error.value)


def test_a_value_of_the_environment_does_not_get_into_a_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with pytest.raises(ConfigError, match="cannot be composed") as caught:
        settings.compose(["name=${oc.env:AWS_SECRET_ACCESS_KEY}"], CONFIGS)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("method.hiden=3", "There is no key 'method.hiden'"),
        ("engine.stage=2", "engine.stage=2 is an option of engine=deepspeed only"),
        ("method=mocov7", "method=mocov7 does not exist"),
        ("tracker=[wandb,mlfow]", "tracker=mlfow does not exist"),
    ],
)
def test_beside_several_options_of_a_group_the_error_names_what_is_wrong(override: str, problem: str) -> None:
    words = ["tracker=[wandb,mlflow]", override] if "tracker" not in override else [override]
    with pytest.raises(ConfigError, match=re.escape(problem)):
        settings.compose(words, CONFIGS)
