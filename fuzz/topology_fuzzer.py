#!/usr/bin/env python3
"""libFuzzer entry point of the target `topology`; the same as `qemuglue-fuzz --target=topology`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=topology", *sys.argv[1:]]))
