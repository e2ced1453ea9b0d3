"""Checks before the first product: of the model, of the loss, and of the derivatives that PyTorch gives."""
