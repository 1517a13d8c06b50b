"""What the status says, read from the folder alone."""

import io
import json

from rich.console import Console

from fedscale.server.caption.engines import Answer
from fedscale.server.caption.status import shown, status
from tests.server.caption.support import Captioned


def test_the_status_counts_shards_and_rows_while_work_is_under_way(captioned: Captioned, fake):
    config = captioned.config()
    assert status(config, captioned.run)["shards"] == {
        "all": 3, "done": 0, "failed": 0, "under way": 0, "pending": 3, "stale": 0
    }  # fmt: skip
    fake(answers={"00000001": Answer("", "stop", 1)})
    path = captioned.manifest.path(captioned.manifest.shards("pool")[2])
    path.write_bytes(path.read_bytes()[:900])
    captioned.caption(max_failed_shards=0.4)
    (captioned.folder / "00001.done.json").unlink()
    (captioned.folder / "00001.part.jsonl").write_text("{}\n")
    (captioned.folder / "00001.lease").write_text(json.dumps({"owner": "node1:42:ab", "beat": 3}))
    found = status(config, captioned.run)
    assert found["shards"] == {"all": 3, "done": 1, "failed": 1, "under way": 1, "pending": 0, "stale": 0}
    assert found["images"] == {"all": 15, "done": 5}
    assert found["rows"]["ok"] == 4 and found["rows"]["empty"] == 1
    assert found["failed"]["pool/00002.tar"]["attempts"] == 1 and found["failed"]["pool/00002.tar"]["reason"]
    assert found["leases"] == {"00001": "node1:42:ab"}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(shown(found))
    text = console.export_text()
    assert "under way" in text and "node1:42:ab" in text and "pool/00002.tar" in text


def test_captions_of_another_config_are_stale_and_no_error(captioned: Captioned):
    captioned.caption(kinds=("description",))
    assert status(captioned.config(), captioned.run)["shards"]["stale"] == 3
