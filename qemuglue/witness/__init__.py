"""Lock-step comparison: predict, perform, collect accounts, judge.

Outcomes are values in here; a difference between model and QEMU is never an exception. Nothing
here decides what to run or where to keep what was found: that is the ``campaign`` room's.

One operation's way through the room::

    steps -> face.encode -> QEMU -> replies, transcript
                                        |
          session (mirror, RAM, contracts of one QEMU)
                                        v
    lockstep (batches, barriers) -> judging (fast and general road) -> verdict

================  ==========================================================================
``verdict``       verdicts, kinds of place, the table
``face``          what each host-path verb means on the model, and the reply QEMU owes
``evidence``      the transcript as the model's devices; ``port_root`` where no port is
``contracts``     what is known of each device region; ``probe`` finds it out
``orders``        byte orders that only a write shows
``ram``           guest RAM compared; ``ramsource`` says where it is read
``pagemap``       which pages of QEMU's memory are there at all
``dma``           devices that access memory by themselves, decoded; ``iommu`` translates
``settling``      what they do after a batch: waited for and compared
``asking_items``  what fw_cfg holds, asked of a throw-away QEMU
``barriers``      which operations end a batch
``fastmap``       a view as parallel lists, and plans for single device calls
``session``       one running QEMU with everything that watches it
``judging``       one batch judged
``lockstep``      a run of steps, batch by batch
``judge``         the slow judge: replay and confirm, in a fresh QEMU
``death``         signatures of a QEMU that ended by itself
``account``       a place in words, shared by the witnesses of a state
``xp``            a read that shows whether it failed
``translation``   which region answers, by ``gpa2hva``
``elf_dump``      RAM and ROM by ``dump-guest-memory``
``pci``           PCI devices mapped as firmware would
``oddities``      what is known to be odd in QEMU, with its reason
================  ==========================================================================
"""
