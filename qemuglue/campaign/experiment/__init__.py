"""Does feedback pay? The same campaign with and without it, and a rank test.

``python -m qemuglue.campaign.experiment`` (or ``ci/experiment``) runs each arm with ten seeds and
the same number of executions, and counts what QEMU showed: distinct (region, offset, size,
outcome) states, distinct trace events of the devices, and distinct shapes of their lines. The
count is made of the transcript's text by code of its own (``Recording``), not by the counters
that steer; in every arm the same events are switched on, and the same program length, set-up and
first inputs are used. A run that performs a program twice pays for it with an execution.

Each run is a process of its own and leaves one JSON file, so an experiment can be interrupted
and goes on where it was.

``arms``       what is compared: arms, sets of devices, measures
``recording``  what a run showed, counted on its own
``run``        one run
``table``      medians and tests
``__main__``   the command
"""
