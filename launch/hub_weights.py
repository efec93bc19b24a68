"""timm's pretrained weights, from the cache of Hugging Face's hub; what is not in it is fetched once, by the launcher.

Only safetensors files are read. What timm offers as a pickle alone is refused, with the line that converts it.
"""

from dataclasses import dataclass
from pathlib import Path

from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.errors import ConfigError, DataError, nearest
from launch.weight_match import heads_of

PREFIX = "timm:"
FILE = "model.safetensors"
SUFFIX, PICKLES = ".safetensors", ".bin"
SAFE = {"pytorch_model.bin": FILE, "open_clip_pytorch_model.bin": "open_clip_model.safetensors"}
"""Names of pickles on the hub, and of the same weights beside them; of others, only the ending differs."""


@dataclass(frozen=True)
class HubWeights:
    """A file of pretrained weights in the cache, and the encoder that it is of."""

    file: Path
    origin: str
    encoder: str
    heads: list[int]
    colours: tuple[tuple[float, ...], tuple[float, ...]]
    convert: str
    """How to get a file by timm's names, if this one has others."""


def of_timm(name: str) -> HubWeights:
    """Return the pretrained weights that timm knows by a name, `resnet50` or `resnet50.a1_in1k`. Raises UserError."""
    import timm  # slow (torchvision and hundreds of models), so only where it is used

    if not timm.is_model_pretrained(name):
        raise ConfigError(
            f"init={PREFIX}{name}: timm has no pretrained weights of this name.", nearest(name, timm.list_pretrained())
        )
    known = timm.get_pretrained_cfg(name)
    repository, _, revision = str(known.hf_hub_id or "").partition("@")
    file = safe_name(known.hf_hub_filename or FILE)
    if not repository or not file.endswith(SUFFIX):
        raise ConfigError(f"init={PREFIX}{name}: timm has these weights as a pickle alone.", _convert(name))
    return HubWeights(
        fetched(name, repository, file, revision or None),
        repository,
        f"encoder.name={known.architecture}",
        heads_of_timm(known.architecture),
        (tuple(known.mean), tuple(known.std)),
        _convert(name),
    )


def heads_of_timm(architecture: str) -> list[int]:
    """Return the number of heads of every attention of a network of timm; empty for a name that it does not have."""
    import timm

    if not timm.is_model(architecture):
        return []
    with on_meta_device():
        return heads_of(timm.create_model(architecture))


def safe_name(file: str) -> str:
    """Return the name under which the hub has the weights of a pickle as safetensors, if it has them at all."""
    return SAFE.get(file, file.removesuffix(PICKLES) + SUFFIX if file.endswith(PICKLES) else file)


def fetched(name: str, repository: str, file: str, revision: str | None) -> Path:
    """Return the place of a file in the cache, after fetching it if it is not there. Raises DataError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # also those of the HTTP library, which is not the same in every version of the hub's
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise DataError(f"init={PREFIX}{name}: {repository} has no {file}.", _convert(name)) from error
        raise DataError(
            f"init={PREFIX}{name}: {repository} is not in the cache {HF_HUB_CACHE}, and cannot be fetched: {reason}",
            "Start the run once where the hub can be reached, with HF_HOME on a disk that both machines see; or copy "
            "the file here, and write init=FILE.safetensors.",
        ) from error


def _convert(name: str) -> str:
    return (
        "Convert them with timm, if you trust their origin: safetensors.torch.save_file(timm.create_model("
        f"'{name}', pretrained=True).state_dict(), 'x.safetensors'). Then write init=x.safetensors."
    )
