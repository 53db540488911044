"""An accelerator's engine, played: the process of a device's owner that runs what the agent delivers.

    engine.py HOST:PORT MODEL      serves for ever: looks which version answers, opens its file, reports each answer

The file is JSON: {"classes": N, "answers": true|false}. One that does not answer is a plan that fails in service.
"""

import json
import sys
import time
import urllib.request


def call(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def infer(plan, pixels):
    if not plan["answers"]:
        raise RuntimeError("the accelerator refuses this plan")
    scores = [0.1 / (plan["classes"] - 1)] * plan["classes"]
    scores[int(sum(pixels)) % plan["classes"]] = 0.9
    return scores


def main(address, model):
    base = f"http://{address}/v2/models/{model}"
    turn = 0
    while True:
        turn += 1
        try:
            described = call("GET", base)
            properties = described["properties"]
            if "entry" not in properties:
                time.sleep(0.05)
                continue
            with open(properties["entry"]) as file:
                plan = json.load(file)
            version = properties["version"]
            pixels = [float((turn * 7 + at) % 16) for at in range(64)]
            tensor = {"name": "pixels", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": pixels}
            seen = {"inputs": [tensor], "latency_us": 1500}
            try:
                name, classes = described["outputs"][0]["name"], plan["classes"]
                scores = infer(plan, pixels)
                seen["outputs"] = [{"name": name, "shape": [1, classes], "datatype": "FP32", "data": scores}]
            except RuntimeError as error:
                seen["error"] = str(error)
            call("POST", f"{base}/versions/{version}/observe", seen)
        except OSError as error:  # the agent is starting, or the version has just changed
            print(f"engine: {error}", file=sys.stderr)
        time.sleep(0.02)


main(*sys.argv[1:])
