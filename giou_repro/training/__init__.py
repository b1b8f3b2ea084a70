"""The training of one detector: parameters, the seeded run that survives a kill, batches, average precision.

`config` needs neither torch nor torchvision; the other modules need the extra `detection`.
"""
