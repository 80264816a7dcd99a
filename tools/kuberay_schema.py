"""Makes tests/data/rayservice.schema.json: python tools/kuberay_schema.py CRD.yaml VERSION.

CRD.yaml is `ray-operator/config/crd/bases/ray.io_rayservices.yaml` of https://github.com/ray-project/kuberay, whose
licence is Apache 2.0, at the tag VERSION. Of its megabyte only what validates is kept, and what occurs often only once.
Unknown keys, which the API server drops or refuses, are refused.
"""

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "rayservice.schema.json"
LONG_ENOUGH = 200
"""Characters of JSON from which on a repeated part gets a place of its own."""


def reduced(schema: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        if key in {"description", "default"} or key.startswith("x-kubernetes-"):
            continue
        if key == "properties":
            kept[key] = {name: reduced(one) for name, one in value.items()}
        elif isinstance(value, dict):
            kept[key] = reduced(value)
        elif key in {"anyOf", "oneOf", "allOf"}:
            kept[key] = [reduced(one) for one in value]
        else:
            kept[key] = value
    if "properties" in kept and "additionalProperties" not in kept:
        kept["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return kept


def shared(schema: Any, parts: dict[str, Any], often: Counter[str]) -> Any:
    if isinstance(schema, list):
        return [shared(one, parts, often) for one in schema]
    if not isinstance(schema, dict):
        return schema
    text = json.dumps(schema, sort_keys=True)
    inner = {key: shared(value, parts, often) for key, value in schema.items()}
    if not isinstance(schema.get("type"), str) or often[text] < 2 or len(text) < LONG_ENOUGH:
        return inner
    name = hashlib.sha256(text.encode()).hexdigest()[:8]
    parts[name] = inner
    return {"$ref": f"#/$defs/{name}"}


def count(schema: Any, often: Counter[str]) -> None:
    if isinstance(schema, dict):
        often[json.dumps(schema, sort_keys=True)] += 1
        for value in schema.values():
            count(value, often)
    elif isinstance(schema, list):
        for value in schema:
            count(value, often)


def main() -> None:
    source, version = Path(sys.argv[1]), sys.argv[2]
    versions = yaml.safe_load(source.read_text(encoding="utf-8"))["spec"]["versions"]
    (current,) = [one for one in versions if one["name"] == "v1"]
    schema = reduced(current["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    often: Counter[str] = Counter()
    count(schema, often)
    parts: dict[str, Any] = {}
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"RayService of KubeRay {version}, Apache License 2.0, reduced by tools/kuberay_schema.py",
        **shared(schema, parts, often),
        "$defs": parts,
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
