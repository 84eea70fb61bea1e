#!/usr/bin/env python3
"""libFuzzer entry point of the target `text`; the same as `qemuglue-fuzz --target=text`."""

import sys

from qemuglue.campaign.libfuzzer import main

if __name__ == "__main__":
    sys.exit(main([sys.argv[0], "--target=text", *sys.argv[1:]]))
