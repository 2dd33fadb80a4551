"""Reads /metrics of a coordinator's page with the parser of Prometheus' own Python client, and compares with the run.

`scripts/interop.sh` calls it while the run trains: `metrics.py http://127.0.0.1:PORT/metrics RUN_DIR`.
"""
import json
import sys
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

TYPES = {"gauge", "counter"}


def main():
    url, run = sys.argv[1], Path(sys.argv[2])
    with urllib.request.urlopen(url, timeout=10) as answer:
        kind, text = answer.headers["content-type"], answer.read().decode()
    families = list(text_string_to_metric_families(text))
    differences = []
    if not kind.startswith("text/plain; version=0.0.4"):
        differences.append(f"content type {kind}")
    for family in families:
        if family.type not in TYPES or not family.documentation:
            differences.append(f"{family.name}: type {family.type}, help {family.documentation!r}")
        if not family.name.startswith(("mcl_", "process_")):
            differences.append(f"{family.name} is not ours")
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}
    one = lambda name, **labels: samples.get((name, tuple(sorted(labels.items()))))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The newest row there is told by its time.
    row = next((r for r in rows if r["time"] == one("mcl_step_timestamp_seconds")), None)
    if row is None:
        differences.append(f"no step was committed at {one('mcl_step_timestamp_seconds')}")
    else:
        for name, field in (("mcl_loss", "loss"), ("mcl_learning_rate", "lr"), ("mcl_gradient_norm", "grad_norm")):
            if one(name) != row[field]:
                differences.append(f"{name} {one(name)}, expected {row[field]} of step {row['step']}")
    if one("mcl_phase", phase="training") != 1 or one("mcl_workers", state="training") != 2:
        differences.append("it does not say that two workers train")
    print(f"Prometheus: {len(families)} families, {len(samples)} series")
    for difference in differences:
        print(f"  DIFFERS: {difference}")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
