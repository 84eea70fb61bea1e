"""The target ``text``: what QEMU says, damaged, given to every parser; no QEMU needed."""
