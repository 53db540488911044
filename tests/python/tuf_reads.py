"""python-tuf as a client of a repository of ours: refreshes, downloads a target, prints what it verified.

usage: tuf_reads.py METADATA TARGETS ROOT TARGET OUT [STATE]
    METADATA, TARGETS  where they are
    ROOT               the root.json to start from
    STATE              an enrolled device's state folder: ca.pem, device.crt, device.key; for a server, which gives
                       targets to devices only
"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater


class DeviceFetcher(FetcherInterface):
    """As the one that python-tuf brings, with the certificate of a device."""

    def __init__(self, state):
        self.context = ssl.create_default_context(cafile=os.path.join(state, "ca.pem"))
        self.context.load_cert_chain(os.path.join(state, "device.crt"), os.path.join(state, "device.key"))

    def _fetch(self, url):
        try:
            response = urllib.request.urlopen(url, context=self.context, timeout=20)
        except urllib.error.HTTPError as error:
            raise DownloadHTTPError(str(error), error.code) from error
        while piece := response.read(65536):
            yield piece


def main(metadata, targets, root, target, out, state=None):
    trusted = os.path.join(out, "metadata")
    os.makedirs(trusted)
    with open(root, "rb") as file:
        bootstrap = file.read()
    updater = Updater(
        trusted, metadata, out, targets, fetcher=state and DeviceFetcher(state), bootstrap=bootstrap
    )
    info = updater.get_targetinfo(target)
    if info is None:
        sys.exit(f"python-tuf finds no {target}")
    path = updater.download_target(info)
    with open(path, "rb") as file:
        length = len(file.read())
    json.dump({"path": path, "length": length, "hashes": info.hashes, "custom": info.custom}, sys.stdout)


main(*sys.argv[1:])
