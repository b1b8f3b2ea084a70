"""What the notebooks measure, draw and say, and the statistics they share.

No module here needs torchvision or the extra `detection`.
"""
