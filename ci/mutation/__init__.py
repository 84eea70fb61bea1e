"""Mutation testing of ``qemuglue.memory``, for developers: what ``ci/mutants`` runs.

==============  ==========================================================================
``operators``   one operator of our own beside Cosmic Ray's: a statement left out
``listing``     every mutant of a module, and a sample of them drawn by a seed
``tree``        copies of the tree, so that the work tree is never touched
``running``     the tests over one mutant, and what came of it
``explained``   the reviewed list of mutants that no test can or need notice
``report``      what is printed, and the JSON document
==============  ==========================================================================

Cosmic Ray lists and makes the mutants; its own runner is not used, because that mutates the
files in place and one at a time.
"""
