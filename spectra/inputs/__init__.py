"""Turn what a user names on the command line into objects: model, checkpoint, data, loss.

This is the only package that imports torchvision, and only when a `torchvision:` name asks for it.
"""
