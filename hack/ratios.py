#!/usr/bin/env python3
"""Sets what hack/bench recorded for bosun beside what it recorded for upstream. usage: ratios.py RESULTS"""
import json
import sys


def flat(value, prefix=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield prefix, float(value)


sides = {"bosun": {}, "upstream": {}}
with open(sys.argv[1]) as lines:
    for line in lines:
        side, measurement, figures = line.split(" ", 2)
        for key, number in flat(json.loads(figures)):
            sides[side][f"{measurement} {key}"] = number
print(f"{'measurement':48} {'bosun':>12} {'upstream':>12} {'ratio':>7}")
for key, ours in sides["bosun"].items():
    theirs = sides["upstream"].get(key)
    if theirs and not key.endswith((".n", "clients", "objects", "bytes")):
        print(f"{key:48} {ours:12.2f} {theirs:12.2f} {ours / theirs:7.2f}")
