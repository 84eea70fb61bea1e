"""What changed between two builds: maps, RAM blocks, contracts, outcomes of one program."""
