"""What the benchmarks share: environments of peers from PyPI, and the agent as it ships."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def say(text):
    """A word on progress; figures alone go to standard output."""
    print(f"== {text}", file=sys.stderr, flush=True)


def venv(name, packages):
    """The interpreter of an environment with these packages, made once, outside of the clone."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "plimsoll" / name
    folder = cache / hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        say(f"installing {' '.join(packages)} from PyPI")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        (folder / "complete").touch()
    return python


def build():
    """The load generator (agent/benches/endpoint.rs), and the agent as it ships: by `cross/build`, in whose folder the
    generator is built first, so that the inference runtime is compiled once for both."""
    say("building the agent (profile dist)")
    target = os.environ.get("CARGO_TARGET_DIR")
    folder = os.environ.get("PLIMSOLL_CROSS_DIR") or (f"{target}-arm" if target else ROOT / "target/arm")
    about = subprocess.run(["rustc", "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout
    host = next(line.split()[1] for line in about.splitlines() if line.startswith("host:"))
    command = ["cargo", "bench", "-q", "--no-run", "--locked", "--profile", "dist", "-p", "plimsoll-agent", "--bench", "endpoint"]
    command += ["--target", host, "--message-format", "json"]
    env = {**os.environ, "CARGO_TARGET_DIR": str(folder)}
    lines = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    programs = {}
    for message in map(json.loads, lines):
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            programs[message["target"]["name"]] = message["executable"]
    subprocess.run([ROOT / "cross/build", host], env={**os.environ, "PLIMSOLL_CROSS_DIR": str(folder)}, check=True, stdout=sys.stderr)
    return programs["plimsoll-agent"], programs["endpoint"]
