#!/usr/bin/env python3
"""libFuzzer entry point of the target `model`; the same as `qemuglue-fuzz --target=model`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=model", *sys.argv[1:]]))
