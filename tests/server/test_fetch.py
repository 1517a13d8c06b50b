"""`fedscale fetch`, with the hub's functions replaced, and with the real client against a port that refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from fedscale.config import overlaid
from fedscale.config.schema import ClipConfig, Config, MllmConfig, OfflineConfig, TeachersConfig
from fedscale.errors import UserError
from fedscale.progress import SilentReporter
from fedscale.server.fetch import fetch

HUB_FILES = {
    "model-00001-of-00002.safetensors": 4_000_000_000,
    "model-00002-of-00002.safetensors": 3_000_000_000,
    "model.safetensors.index.json": 70_000,
    "config.json": 1_000,
    "tokenizer.model": 500_000,
    "pytorch_model.bin": 7_000_000_000,
    "README.md": 4_000,
}


class Hub:
    """The hub as the tests want it: which files a repository has, what it raises, and what was asked of it."""

    def __init__(self) -> None:
        self.files = dict(HUB_FILES)
        self.error: Exception | None = None
        self.looked_up: list[tuple[str, str | None]] = []
        self.tokens: list[Any] = []
        self.downloads: list[dict[str, Any]] = []

    def model_info(self, api: Any, repository: str, *, revision: str | None = None, **_: Any) -> SimpleNamespace:
        self.looked_up.append((repository, revision))
        self.tokens.append(api.token)
        if self.error:
            raise self.error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f, size=s) for f, s in self.files.items()])

    def snapshot_download(self, repository: str, **asked: Any) -> str:
        self.downloads.append({"repository": repository, **asked})
        return f"/cache/{repository}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda api, *args, **kwargs: hub.model_info(api, *args, **kwargs)
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


@pytest.fixture
def local(tmp_path: Path) -> str:
    """A local folder, as a teacher may be."""
    return str(tmp_path)


def _config(local: str, mllm: MllmConfig | None = None, clip: ClipConfig | None = None, **rest: Any) -> Config:
    teachers = TeachersConfig(clip=clip or ClipConfig(local), mllm=mllm or MllmConfig(local))
    return Config(teachers=teachers, **rest)


def test_local_folders_are_said_to_need_nothing(hub: Hub, local: str) -> None:
    lines = fetch(_config(local), SilentReporter())
    assert [line.endswith("a local folder, nothing to fetch") for line in lines] == [True, True]
    assert not hub.looked_up and not hub.downloads


def test_an_mllm_is_fetched_without_pickles(hub: Hub, local: str) -> None:
    reporter = SilentReporter()
    lines = fetch(_config(local, MllmConfig("org/llava", revision="v2")), reporter)
    (asked,) = hub.downloads
    assert asked["repository"] == "org/llava" and asked["revision"] == "v2"
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"])
    assert {"*.safetensors", "*.json"} <= set(asked["allow_patterns"])
    assert reporter.lines == ["fetching org/llava: 5 files, 7.00 GB"]
    assert "teachers.mllm.model=org/llava: in /cache/org/llava" in lines


def test_the_language_model_of_pretraining_is_fetched_too(hub: Hub, local: str) -> None:
    config = overlaid(_config(local), {"teachers": {"lm": {"model": "org/vicuna", "revision": "v1"}}})
    lines = fetch(config, SilentReporter())
    assert [(asked["repository"], asked["revision"]) for asked in hub.downloads] == [("org/vicuna", "v1")]
    assert "teachers.lm.model=org/vicuna: in /cache/org/vicuna" in lines


def test_pickled_weights_alone_are_refused(hub: Hub, local: str) -> None:
    hub.files = {"pytorch_model.bin": 7, "config.json": 1}
    with pytest.raises(UserError, match=r"org/llava: has no \.safetensors weights, and pickled ones are refused"):
        fetch(_config(local, MllmConfig("org/llava")), SilentReporter())
    assert not hub.downloads


def test_every_variant_is_fetched_once(hub: Hub, local: str) -> None:
    overlay = {"teachers": {"mllm": {"model": "org/other"}}}
    config = _config(local, MllmConfig("org/llava"), variants={"a": {}, "b": overlay, "c": overlay})
    fetch(config, SilentReporter())
    assert [asked["repository"] for asked in hub.downloads] == ["org/llava", "org/other"]


def test_teachers_trained_offline_are_not_fetched(hub: Hub) -> None:
    config = Config(teachers=TeachersConfig(offline=OfflineConfig(enabled=True)))
    assert fetch(config, SilentReporter()) == [
        "teachers.offline.enabled=true: trained from scratch on this machine, nothing to fetch"
    ]
    assert not hub.looked_up


def test_the_token_is_the_environments_and_is_never_shown(
    hub: Hub, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, config = SilentReporter(), _config(local, MllmConfig("org/llava"))
    fetch(config, reporter)
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    lines = fetch(config, reporter)
    assert hub.tokens == [False, "hf_verysecret"]  # False: not even one that lies in a file
    assert [asked["token"] for asked in hub.downloads] == [False, "hf_verysecret"]
    assert "verysecret" not in "".join([*lines, *reporter.lines])


def _answer(kind: type[Exception], status: int) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind("hf_verysecret in some text of the hub", response=response)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (_answer(errors.GatedRepoError, 403), "teachers.mllm.model=org/llava: gated; .* set HF_TOKEN"),
        (_answer(errors.RepositoryNotFoundError, 404), "teachers.mllm.model=org/llava: no such hub repository"),
        (_answer(errors.RevisionNotFoundError, 404), "teachers.mllm.revision=v9: the repository has no such revision"),
        (_answer(errors.HfHubHTTPError, 503), "the hub answered with status 503; .*offline_teachers.yaml"),
        (errors.HFValidationError("x"), "neither a local folder nor a hub id"),
        (errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE is set.*offline_teachers.yaml"),
        (TimeoutError("timed out"), "the hub cannot be reached.*offline_teachers.yaml"),
        (OSError(28, "No space left on device"), "cannot be written .*the disk is full"),
    ],
)
def test_what_the_hub_raises_becomes_one_line(hub: Hub, local: str, error: Exception, line: str) -> None:
    hub.error = error
    with pytest.raises(UserError, match=line) as raised:
        fetch(_config(local, MllmConfig("org/llava", revision="v9")), SilentReporter())
    assert "\n" not in str(raised.value) and "verysecret" not in str(raised.value)


def test_a_mistake_of_ours_is_not_taken_for_the_network(hub: Hub, local: str) -> None:
    hub.error = AttributeError("a bug")
    with pytest.raises(AttributeError, match="a bug"):
        fetch(_config(local, MllmConfig("org/llava")), SilentReporter())


@pytest.mark.parametrize("teacher", ["mllm", "clip"])
def test_without_a_network_one_line_comes_before_any_download(
    teacher: str, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client; port 9 of this machine refuses. A download would retry for most of a minute: none is begun."""
    open_clip = pytest.importorskip("open_clip")

    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was begun")

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", begun)
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", begun)
    config = _config(local, MllmConfig("org/llava")) if teacher == "mllm" else _config(local, clip=ClipConfig())
    with pytest.raises(UserError, match=r"the hub cannot be reached; .* configs/overlays/offline_teachers\.yaml$"):
        fetch(config, SilentReporter())


def test_an_open_clip_model_is_looked_up_and_fetched_by_open_clip(
    hub: Hub, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip = pytest.importorskip("open_clip")
    sources = []
    monkeypatch.setattr(
        open_clip.pretrained, "download_pretrained", lambda source: sources.append(source["hf_hub"]) or "/cache/clip"
    )
    lines = fetch(_config(local, clip=ClipConfig()), SilentReporter())
    assert hub.looked_up == [("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", None)]
    assert sources == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"]
    assert "teachers.clip.model=ViT-B-32: in /cache/clip" in lines


def test_a_hub_clip_brings_its_config_its_weights_and_its_tokenizer(
    hub: Hub, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip = pytest.importorskip("open_clip")
    staged: list[tuple[str, str | None]] = []

    def download(repository: str, filename: str | None = None) -> str:
        staged.append((repository, filename))
        return "/cache/clip"

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", download)
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: staged.append((name, "tokenizer")))
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: {"text_cfg": {}})
    fetch(_config(local, clip=ClipConfig("hf-hub:org/clip")), SilentReporter())
    assert hub.looked_up == [("org/clip", None)]
    assert staged == [("org/clip", "open_clip_config.json"), ("org/clip", None), ("hf-hub:org/clip", "tokenizer")]


def test_a_hub_clip_without_weights_is_refused_in_one_line(
    hub: Hub, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_clip = pytest.importorskip("open_clip")

    def missing(repository: str, filename: str | None = None) -> str:
        try:
            raise _answer(errors.RemoteEntryNotFoundError, 404)
        except errors.EntryNotFoundError as error:  # as open_clip does
            raise FileNotFoundError(f"Failed to download file ({filename}) for {repository}. Last error: {error}")  # noqa: B904

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", missing)
    with pytest.raises(UserError, match="hf-hub:org/clip: the repository lacks the weights or the config"):
        fetch(_config(local, clip=ClipConfig("hf-hub:org/clip")), SilentReporter())


@pytest.mark.parametrize(
    ("clip", "line"),
    [
        (ClipConfig("ViT-B-33"), r"teachers.clip.model=ViT-B-33: neither .* did you mean ViT-B-3"),
        (ClipConfig("ViT-B-32", "laion2b_s34b_b79"), r"teachers.clip.pretrained=.* did you mean laion2b_s34b_b79k\?"),
        (
            ClipConfig("ViT-B-32", None),
            r"teachers.clip.pretrained=None: open_clip has no such weights of ViT-B-32; expec",
        ),
    ],
)
def test_an_unknown_clip_is_refused_with_the_nearest_name(hub: Hub, local: str, clip: ClipConfig, line: str) -> None:
    pytest.importorskip("open_clip")
    with pytest.raises(UserError, match=line):
        fetch(_config(local, clip=clip), SilentReporter())
    assert not hub.looked_up
