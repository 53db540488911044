"""python-tuf as the owner of a repository: writes one with every feature that a client must know.

usage: tuf_writes.py OUT SCHEME    (SCHEME: ed25519, ecdsa, rsa-pss, rsa-pkcs1)

    OUT/root.json    the first root; OUT/metadata holds a second, with another root key
    OUT/metadata     consistent snapshots: targets, `team` (by pattern, terminating), `nested` (through team, two
                     keys of which both must sign), `bin-0` and `bin-1` (by the digest of the path)
    OUT/targets      named by digest
"""

import hashlib
import os
import sys
from datetime import datetime, timedelta, timezone

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

MAKE = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa": CryptoSigner.generate_ecdsa,
    "rsa-pss": CryptoSigner.generate_rsa,
    "rsa-pkcs1": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
}
EXPIRES = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=30)
FILES = {
    "team": {"models/a/model.onnx": b"model a"},
    "nested": {"models/b/model.onnx": b"model b"},
    "bin-0": {"loose file.txt": b"in a bin"},
    "bin-1": {},
}


def main(out, scheme):
    new = MAKE[scheme]
    metadata, targets_dir = os.path.join(out, "metadata"), os.path.join(out, "targets")
    os.makedirs(metadata)

    def write(name, doc, *signers):
        md = Metadata(doc)
        for signer in signers:
            md.sign(signer, append=True)
        data = md.to_bytes()
        with open(os.path.join(metadata, name), "wb") as file:
            file.write(data)
        return MetaFile(doc.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})

    def listed(role):
        files = {}
        for path, content in FILES[role].items():
            files[path] = TargetFile.from_data(path, content, ["sha256", "sha512"])
            folder, _, name = path.rpartition("/")
            os.makedirs(os.path.join(targets_dir, folder), exist_ok=True)
            named = f"{files[path].hashes['sha256']}.{name}"
            with open(os.path.join(targets_dir, folder, named), "wb") as file:
                file.write(content)
        return files

    keys = {name: new() for name in ["root", "next-root", "targets", "snapshot", "timestamp", "team", "n1", "n2"]}
    bins = new()

    # `team` speaks for models/*/*, and hands models/b/* on to `nested`, whose two keys must both sign.
    nested = Targets(expires=EXPIRES, targets=listed("nested"))
    team = Targets(expires=EXPIRES, targets=listed("team"))
    team.delegations = Delegations({}, {"nested": DelegatedRole("nested", [], 2, False, paths=["models/b/*"])})
    team.add_key(keys["n1"].public_key, "nested")
    team.add_key(keys["n2"].public_key, "nested")
    roles = {"team": DelegatedRole("team", [], 1, True, paths=["models/[ab]/*"])}
    for name, digits in [("bin-0", "01234567"), ("bin-1", "89abcdef")]:
        roles[name] = DelegatedRole(name, [], 1, False, path_hash_prefixes=list(digits))
    targets = Targets(expires=EXPIRES)
    targets.delegations = Delegations({}, roles)
    targets.add_key(keys["team"].public_key, "team")
    targets.add_key(bins.public_key, "bin-0")
    targets.add_key(bins.public_key, "bin-1")

    snapshot = Snapshot(expires=EXPIRES)
    snapshot.meta["targets.json"] = write("1.targets.json", targets, keys["targets"])
    snapshot.meta["team.json"] = write("1.team.json", team, keys["team"])
    snapshot.meta["nested.json"] = write("1.nested.json", nested, keys["n1"], keys["n2"])
    for name in ["bin-0", "bin-1"]:
        snapshot.meta[f"{name}.json"] = write(
            f"1.{name}.json", Targets(expires=EXPIRES, targets=listed(name)), bins
        )
    meta = write("1.snapshot.json", snapshot, keys["snapshot"])
    write("timestamp.json", Timestamp(expires=EXPIRES, snapshot_meta=meta), keys["timestamp"])

    root = Root(expires=EXPIRES, consistent_snapshot=True)
    for role in ["root", "targets", "snapshot", "timestamp"]:
        root.add_key(keys[role].public_key, role)
    write("1.root.json", root, keys["root"])
    with open(os.path.join(metadata, "1.root.json"), "rb") as first:
        with open(os.path.join(out, "root.json"), "wb") as file:
            file.write(first.read())
    root.version = 2
    root.unrecognized_fields["x-note"] = "under the signature"
    root.revoke_key(keys["root"].public_key.keyid, "root")
    root.add_key(keys["next-root"].public_key, "root")
    write("2.root.json", root, keys["root"], keys["next-root"])


main(*sys.argv[1:])
