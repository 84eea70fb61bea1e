"""Campaigns: which programs to run, for how long, and what becomes of what they find.

================  ==========================================================================
``targets``       the fuzz targets by name
``drawing``       how a target's programs are drawn; ``devices`` what ``device`` is about
``inputs``        targets without a machine: ``text`` and ``model`` are two
``defects``       planted model defects, for the canary and the tests; ``map_defects`` of
                  the mirror, ``faults`` on the wire; ``planted`` has all by name
``settings``      everything that decides a campaign, as one value that travels
``explorer``      execute programs on one machine and deal with what happens
``findings``      the finding folder (FINDING.md); ``loading`` reads what ``replay`` takes
``worker``        one process of a campaign; ``runner`` its parent; ``status`` between them
``libfuzzer``     the Atheris entry, ``qemuglue-fuzz``; ``feedback`` its counters
``steering``      what of QEMU steers it: ``reach`` reads the transcript, ``trace_events``
                  chooses and budgets QEMU's own, ``guide`` and ``guided`` say where to aim
``breeding``      new inputs of old ones, by operations; ``corpus`` keeps inputs
``experiment``    whether that pays: arms, seeds, and ``rank``'s test
``checking``      the check of one machine; ``check_result`` its outcome
``check_run``     many machines at a time; ``check_jobs`` what each worker does
``clean``         which ways bring a machine back into its first state; ``restoring`` has
                  them, ``repeating`` performs one program again and again
``schedule``      jobs in worker processes, whatever becomes of one
``bench``         judged operations a second; ``bench_model`` the model by itself;
                  ``bench_check`` the maps of all machines beside launching them
================  ==========================================================================
"""
