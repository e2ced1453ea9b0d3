"""Build the model, checkpoint, data and loss that a user names on the command line or gives in Python.

This is the only package that imports torchvision, transformers and timm, each only when a name asks for it.
"""
