#!/usr/bin/env python3
"""libFuzzer entry point of the target `canary`; the same as `qemuglue-fuzz --target=canary`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=canary", *sys.argv[1:]]))
