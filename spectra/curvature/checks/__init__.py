"""Checks of the model, of the loss, and of the derivatives that PyTorch gives, made before the first product."""
