#!/usr/bin/env python3
"""libFuzzer entry point of the target `access`; the same as `qemuglue-fuzz --target=access`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=access", *sys.argv[1:]]))
