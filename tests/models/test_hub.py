"""Where the hub cannot be reached its clients do not retry; where it can, nothing is changed."""

import socket

import pytest
from huggingface_hub import constants

from fedscale.errors import UserError
from fedscale.models.hub import local_folder, offline_where_unreachable


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No proxy, and the clients' own offline mode off."""
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch


def test_an_unreachable_hub_means_offline_within_the_block_alone(direct: pytest.MonkeyPatch) -> None:
    with socket.socket() as reserved:  # bound, but nobody listens
        reserved.bind(("127.0.0.1", 0))
        direct.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{reserved.getsockname()[1]}")
        with offline_where_unreachable():
            assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_reachable_hub_stays_online_and_a_users_offline_mode_stays_offline(direct: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub:
        direct.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        with offline_where_unreachable():
            assert not constants.HF_HUB_OFFLINE
        direct.setattr(constants, "HF_HUB_OFFLINE", True)
        with offline_where_unreachable():
            assert constants.HF_HUB_OFFLINE


def test_what_can_only_be_a_path_is_no_hub_name(tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        local_folder(str(tmp_path / "gone"), "config.json", "teachers.mllm.model")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        local_folder(str(tmp_path), "config.json", "teachers.mllm.model")
    assert local_folder("llava-hf/llava-1.5-7b-hf", "config.json", "teachers.mllm.model") is None
