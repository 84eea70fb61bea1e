"""Recipes: how a driver would use a device, as operations with random parameters.

Random operations hardly ever set a DMA up. A recipe does: rings, descriptors and buffers in
guest RAM, then the registers that start it. Its operations are ordinary ones, so mutation,
minimizing and the text format need to know nothing about them.

``recipe``   what a recipe is, and the guest RAM it may use
"""
