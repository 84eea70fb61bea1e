#!/usr/bin/env python3
"""libFuzzer entry point of the target `dma`; the same as `qemuglue-fuzz --target=dma`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=dma", *sys.argv[1:]]))
