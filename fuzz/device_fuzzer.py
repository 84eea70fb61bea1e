#!/usr/bin/env python3
"""libFuzzer entry point of the target `device`; the same as `qemuglue-fuzz --target=device`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=device", *sys.argv[1:]]))
