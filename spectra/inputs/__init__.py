"""Turn what a user names on the command line into objects: model, checkpoint, data, loss.

This is the only package that imports torchvision, transformers and timm, each only when a name asks for it.
"""
