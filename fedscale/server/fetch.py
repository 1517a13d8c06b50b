"""`fedscale fetch`: stage the hub weights of a config's teachers in the ordinary caches, for nodes without a network.

Every repository is looked up once, without retries, before anything is downloaded: without a network that fails within
seconds, where the hub clients' own downloads retry for most of a minute.
"""

from __future__ import annotations

import difflib
import os
from fnmatch import fnmatch

from fedscale import house
from fedscale.config import Config, overlaid
from fedscale.config.schema import ClipConfig, LmConfig, MllmConfig
from fedscale.errors import UserError
from fedscale.progress import Reporter
from fedscale.server.fetch_errors import explained

# Weights as safetensors alone (a .bin or .pt is a pickle), and what processor and tokenizer consist of.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"  # open_clip's marks of a hub repository and of a folder
LOOKUP_SECONDS = 10.0


def fetch(config: Config, reporter: Reporter) -> list[str]:
    """Download what `teachers.mllm`, `.lm` and `.clip`, of the config and of its variants, name on the hub.

    Returns one line for each teacher: where it lies now, or that there is nothing to fetch. A token for gated
    repositories comes from HF_TOKEN in the environment. Raises UserError when the hub cannot be reached, when it has no
    such repository, revision or safetensors weights, and when the cache cannot be written.
    """
    variants = [overlaid(config, overlay or {}, f"variants.{name}") for name, overlay in config.variants.items()]
    teachers = [one.teachers for one in (config, *variants)]
    mllms = dict.fromkeys(t.mllm for t in teachers if not t.offline.enabled)
    clips = dict.fromkeys(t.clip for t in teachers if not t.offline.enabled)
    lms = dict.fromkeys(t.lm for t in teachers if t.lm.model)
    lines = [_fetch_model("teachers.mllm", mllm, reporter) for mllm in mllms]
    lines += [_fetch_model("teachers.lm", lm, reporter) for lm in lms]
    lines += [_fetch_clip(clip, reporter) for clip in clips]
    if any(t.offline.enabled for t in teachers):
        lines.append("teachers.offline.enabled=true: trained from scratch on this machine, nothing to fetch")
    return lines


def _fetch_model(section: str, settings: MllmConfig | LmConfig, reporter: Reporter) -> str:
    """Fetch a model of transformers' with its tokenizer or processor; `section` is the settings' dotted name."""
    name, revision = settings.model, settings.revision
    named = f"{section}.model={name}"
    if _is_local(name):
        return f"{named}: a local folder, nothing to fetch"
    from huggingface_hub import snapshot_download

    with explained(named, f"{section}.revision={revision}"):
        sizes = _look_up(name, revision)
        wanted = {file: size for file, size in sizes.items() if any(fnmatch(file, one) for one in MODEL_FILES)}
        if not any(file.endswith(".safetensors") for file in wanted):
            raise UserError(
                f"{named}: has no .safetensors weights, and pickled ones are refused; name another revision"
            )
        reporter.say(f"fetching {name}: {len(wanted)} files, {sum(wanted.values()) / 1e9:.2f} GB")
        token = os.environ.get("HF_TOKEN") or False
        path = snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES), token=token)
    return f"{named}: in {path}"


def _fetch_clip(clip: ClipConfig, reporter: Reporter) -> str:
    named = f"teachers.clip.model={clip.model}"
    if _is_local(clip.model):
        return f"{named}: a local folder, nothing to fetch"
    if clip.pretrained is not None and os.path.isfile(clip.pretrained):
        return f"teachers.clip.pretrained={clip.pretrained}: a local file, nothing to fetch"
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf

    with explained(named, named):
        if clip.model.startswith(HUB_PREFIX):
            repository = clip.model.removeprefix(HUB_PREFIX)
            _look_up(repository, None)
            reporter.say(f"fetching {clip.model}")
            download_pretrained_from_hf(repository, filename="open_clip_config.json")
            path = download_pretrained_from_hf(repository)
        else:
            source = _open_clip_weights(clip)
            if source.get("hf_hub"):
                _look_up(os.path.split(source["hf_hub"])[0], None)
            reporter.say(f"fetching {clip.model} ({clip.pretrained})")
            path = download_pretrained(source)
        _fetch_text_side(clip.model)
    return f"{named}: in {path}"


def _open_clip_weights(clip: ClipConfig) -> dict[str, str]:
    """Where open_clip gets the weights of a model of its own. Raises UserError for a name that it does not know."""
    from open_clip import get_model_config, list_models, list_pretrained_tags_by_model
    from open_clip.pretrained import get_pretrained_cfg

    name = clip.model.replace("/", "-")  # as open_clip itself does: ViT-B/32 is its ViT-B-32
    if get_model_config(name) is None:
        near = _near(name, list_models())
        raise UserError(
            f"teachers.clip.model={clip.model}: neither a local folder nor a model of open_clip{near}; "
            f"a hub repository is written {HUB_PREFIX}ORGANISATION/NAME"
        )
    source = get_pretrained_cfg(name, clip.pretrained or "")
    if not source:
        tags = list_pretrained_tags_by_model(name)
        known = _near(clip.pretrained or "", tags) or f"; expected e.g. {', '.join(tags[:4])}"
        raise UserError(f"teachers.clip.pretrained={clip.pretrained}: open_clip has no such weights of {name}{known}")
    return source


def _fetch_text_side(model: str) -> None:
    """What open_clip takes from other repositories when it builds the text tower: its tokenizer and its config."""
    from open_clip import get_model_config, get_tokenizer

    get_tokenizer(model)
    tower = (get_model_config(model.replace("/", "-") if not model.startswith(HUB_PREFIX) else model) or {})["text_cfg"]
    if tower.get("hf_model_name"):
        from transformers import AutoConfig

        AutoConfig.from_pretrained(tower["hf_model_name"])


def _is_local(model: str) -> bool:
    try:
        return house.find(model.removeprefix(LOCAL_PREFIX)).is_dir()
    except UserError:
        return False


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _look_up(repository: str, revision: str | None) -> dict[str, int]:
    """Files of a hub repository and their bytes, by one request."""
    from huggingface_hub import HfApi

    hub = HfApi(token=os.environ.get("HF_TOKEN") or False)
    info = hub.model_info(repository, revision=revision, timeout=LOOKUP_SECONDS, files_metadata=True)
    return {file.rfilename: file.size or 0 for file in info.siblings or []}
