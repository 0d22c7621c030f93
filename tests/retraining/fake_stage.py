"""Stands in for the pipeline's commands: `python tests/retraining/fake_stage.py STAGE RUN_DIR`.

Its "model" is a text: `bad` where a trained record says so, else `good`.
"""

import hashlib
import json
import sys
from pathlib import Path

CARD = {
    **dict.fromkeys(("read", "train"), 3),
    **dict.fromkeys(("heldout", "joined"), 0),
    **{name: {} for name in ("by_side", "by_category", "by_group", "by_calls", "by_tools", "rejected", "samples")},
    **{name: {} for name in ("repairs", "shortened", "augmented", "evaluation_texts", "overlaps")},
    "data_hash": "0",
    "sources": [],
    "lengths": {"unit": "tokens", "median": 1, "p95": 1, "longest": 1, "buckets": {}},
}


def main(stage: str, folder: Path) -> None:
    name = folder.name
    if stage == "calibrate":  # no part of the pipeline that the journal is about
        scale = {"slope": 1.5, "intercept": 0.1}
        value = {**dict.fromkeys(("reply", "tool", "argument"), scale), "threshold": 0.7, "model": ""}
        (folder / "gguf" / f"{name}-q8_0.calibration.json").write_text(json.dumps(value))
        return
    with (folder.parent / "journal").open("a") as stream:
        stream.write(f"{name} {stage}\n")
    out = folder / {"prepare": "data", "train": "checkpoint", "evaluate": "eval", "export": "gguf"}[stage]
    out.mkdir(exist_ok=True)
    if stage == "prepare":
        assert (folder / "run.yaml").is_file()
        pool = (folder / "intake" / "pool.jsonl").read_text()
        (out / "train.jsonl").write_text("")
        (out / "kind").write_text("bad" if "poison" in pool else "good")
        (out / "heldout.jsonl").write_text("")
        (folder / "data_card.json").write_text(json.dumps(CARD))
    elif stage == "train":
        (out / "config.json").write_text((folder / "data" / "kind").read_text() + f" {name}")
    elif stage == "evaluate":
        (out / "core-checkpoint.json").write_text("{}")
    else:
        file = out / f"{name}-q8_0.gguf"
        file.write_text((folder / "checkpoint" / "config.json").read_text())
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        report = {"files": [{"path": str(file), "sha256": digest}]}
        (out / f"{name}-export.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
