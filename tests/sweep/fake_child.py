"""Stands in for a row's process, in milliseconds: what it does is the name of its folder."""

import json
import os
import sys
import time
from pathlib import Path

from filelock import FileLock

run_dir = Path(sys.argv[1])
kind = run_dir.name
print("fake row", kind, flush=True)
with FileLock(run_dir / ".lock", timeout=0):
    starts = run_dir / "starts"
    starts.write_text((starts.read_text() if starts.exists() else "") + f"{os.environ.get('OMP_NUM_THREADS')}\n")
    if kind == "bad":
        print("mobilemamba: error: data.root /nope is not a folder", file=sys.stderr)
        sys.exit(2)
    if kind == "bug":
        raise ValueError("a bug")
    if kind == "early":  # what Lightning does after SIGTERM
        sys.exit(0)
    if kind == "flaky" and len(starts.read_text().splitlines()) < 2:
        sys.exit(1)
    while kind == "slow" and not (run_dir.parent.parent / "go").exists():
        time.sleep(0.05)
    (run_dir / "results.json").write_text(
        json.dumps(
            {
                "top1": 80.0 + len(kind),
                "top5": 99.0,
                "epochs": 2,
                "best_epoch": 2,
                "seed": 0,
                "resumes": 0,
                "data": "toys",
                "val_pictures": 2000,
                "train_pictures": 8000,
                "img_size": 32,
                "measured": {
                    "throughput": {
                        "images_per_second": 10.0 * len(kind),
                        "spread": 0.01,
                        "batch_size": 32,
                        "device": os.environ.get("FAKE_DEVICE", "cpu"),
                    }
                },
            }
        )
    )
