"""What a user names on the command line, turned into objects: model, checkpoint, data, loss.

The only package that imports torchvision, and only when a `torchvision:` name asks for it.
"""
