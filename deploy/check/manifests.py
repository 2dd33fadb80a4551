"""Kubernetes manifests against the published schemas: the base as it is, and each overlay with its patches applied.

usage: manifests.py FOLDER (with base/ and overlays that name ../base); needs kubernetes-validate, jsonpatch, PyYAML.
"""

import sys
from pathlib import Path

import jsonpatch
import kubernetes_validate
import yaml


def kustomization(folder):
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def resources(folder):
    """Every manifest that a kustomization leads to, patched as it says."""
    described = kustomization(folder)
    found = []
    for entry in described["resources"]:
        path = folder / entry
        found += resources(path) if path.is_dir() else [d for d in yaml.safe_load_all(path.read_text()) if d]
    for patch in described.get("patches", []):
        target = patch["target"]
        at = [i for i, r in enumerate(found) if r["kind"] == target["kind"] and r["metadata"]["name"] == target["name"]]
        if len(at) != 1:
            sys.exit(f"{folder}: the patch of {target} meets {len(at)} manifests")
        found[at[0]] = jsonpatch.apply_patch(found[at[0]], yaml.safe_load(patch["patch"]))
    return found


def main():
    root = Path(sys.argv[1])
    for folder in sorted(p.parent for p in root.glob("*/kustomization.yaml")):
        listed = set(kustomization(folder)["resources"])
        stray = {p.name for p in folder.glob("*.yaml")} - listed - {"kustomization.yaml"}
        if stray:
            sys.exit(f"{folder}: not listed: {sorted(stray)}")
        for resource in resources(folder):
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
            print(f"{folder.name}: {resource['kind']} {resource['metadata']['name']} fits")


main()
