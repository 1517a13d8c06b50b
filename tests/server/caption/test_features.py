"""Stored embeddings: what the live teacher would say, so that pretraining on them is pretraining beside it."""

import dataclasses

import pytest
import torch

from fedscale import files
from fedscale.config.schema import ClipConfig, Config, FeaturesConfig, PretrainConfig, ProbeConfig
from fedscale.data.images import decode, fit_square
from fedscale.data.shards import read_shard
from fedscale.errors import Stopped, UserError
from fedscale.house import PACKAGE
from fedscale.models.clip import load_clip
from fedscale.server.caption import ledger, run
from fedscale.server.caption.features import FeatureStore, view_of
from fedscale.server.pretrain.data import PairStream
from fedscale.session import Session
from tests.server.caption.support import Captioned, make_pool, sample

CLIP = ClipConfig(str(PACKAGE / "teachers/shapes/clip"), pretrained=None)


def config_of(captioned: Captioned, views: int = 1, teacher: str = "live", **pretrain) -> Config:
    config = captioned.config(features=FeaturesConfig(enabled=teacher == "stored", views=views, batch_size=4))
    pretrain = PretrainConfig(teacher=teacher, probe=ProbeConfig(enabled=False), **pretrain)
    teachers = dataclasses.replace(config.teachers, clip=CLIP)
    return dataclasses.replace(config, teachers=teachers, pretrain=pretrain)


@pytest.fixture
def captioned(tmp_path) -> Captioned:
    samples = [[sample(n, b"no image" if n == 3 else None) for n in range(20 * s, 20 * s + 20)] for s in range(2)]
    return Captioned(make_pool(tmp_path / "shards", samples), tmp_path / "run")


def stored(captioned: Captioned, config: Config, number: int = 0):
    where = ledger.captioned(config, captioned.manifest, captioned.run)
    return FeatureStore(config, where.where).read(where.entries[number])


def test_the_stored_embeddings_are_the_teachers_in_shard_order(captioned):
    config = config_of(captioned, views=3, teacher="stored")
    run(config, captioned.run, Session())
    found, clip = stored(captioned, config), load_clip(CLIP)
    assert found.embeddings.shape == (20, 3, clip.embed_dim) and found.embeddings.dtype == torch.float16
    assert not found.embeddings[3].any() and not found.descriptions[3].any(), "no image, no embedding"
    samples = list(read_shard(captioned.manifest.path(captioned.manifest.shards("pool")[0])))
    for index in (0, 7):
        image = torch.tensor(fit_square(decode(samples[index].image), config.data.image_size))
        for view in range(3):
            seen = view_of(image, view, config.pretrain.augment, config.caption.seed, samples[index].key)
            assert torch.allclose(clip.encode_images(seen[None])[0], found.embeddings[index, view].float(), atol=1e-3)
        read = clip.encode_texts([f"A photo of {'a circle' if index % 2 == 0 else 'an arrow'}."])[0]
        assert torch.allclose(read, found.descriptions[index].float(), atol=1e-3)
    assert not torch.equal(found.embeddings[0, 0], found.embeddings[0, 1])


def test_the_student_sees_the_very_view_whose_embedding_it_is_given(captioned):
    config = config_of(captioned, views=4, teacher="stored")
    run(config, captioned.run, Session())
    stream, clip = PairStream(config, captioned.manifest, captioned.run), load_clip(CLIP)
    batches = stream.batches(0, 39)
    (first,), (second,) = next(batches), next(batches)
    for batch in (first, second):
        assert batch.augmented and batch.seen is not None
        assert torch.allclose(clip.encode_images(batch.images), batch.seen, atol=2e-3)
    assert not torch.equal(first.seen.sum(0), second.seen.sum(0)), "other views in the next epoch"


def test_embeddings_are_added_to_finished_captions_without_captioning_again(captioned, fake):
    run(config_of(captioned), captioned.run, Session())
    before = {path.name: path.read_bytes() for path in captioned.folder.iterdir()}
    _, engine = fake()
    run(config_of(captioned, teacher="stored"), captioned.run, Session())
    after = {path.name: path.read_bytes() for path in captioned.folder.iterdir()}
    assert engine.calls == 0 and before == {name: after[name] for name in before}
    assert set(after) - set(before) == {f"0000{n}.clip.{end}" for n in (0, 1) for end in ("done.json", "safetensors")}


def test_embeddings_of_other_captions_or_settings_are_made_anew(captioned, fake):
    config = config_of(captioned, teacher="stored")
    run(config, captioned.run, Session())
    marker = captioned.folder / "00001.clip.done.json"
    first = files.read_json(marker)
    run(dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=16)), captioned.run, Session())
    assert files.read_json(marker)["fingerprint"] != first["fingerprint"]
    with pytest.raises(UserError, match=r"no embeddings of this config.*caption.features.enabled=true"):
        stored(captioned, config)


def test_damaged_embeddings_are_refused(captioned):
    config = config_of(captioned, teacher="stored")
    run(config, captioned.run, Session())
    path = captioned.folder / "00000.clip.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"00000.clip.safetensors: damaged"):
        stored(captioned, config)


def test_a_shard_that_broke_after_captioning_is_named_and_the_others_are_embedded(captioned):
    run(config_of(captioned), captioned.run, Session())
    path = captioned.manifest.path(captioned.manifest.shards("pool")[0])
    path.write_bytes(path.read_bytes()[:3000])
    session = Session()
    with pytest.raises(UserError, match="1 of 2 shards cannot be embedded"):
        run(config_of(captioned, teacher="stored"), captioned.run, session)
    assert any("00000.tar: cannot be embedded" in line for line in session.reporter.lines)
    assert (captioned.folder / "00001.clip.done.json").exists()


def test_a_stop_while_embedding_ends_between_batches(captioned):
    run(config_of(captioned), captioned.run, Session())
    session = Session()
    session.stop.set()
    with pytest.raises(Stopped):
        run(config_of(captioned, teacher="stored"), captioned.run, session)
    assert not list(captioned.folder.glob("*.clip.*"))
