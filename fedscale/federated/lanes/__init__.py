"""K clients side by side: their state (`state`), and a model's K-client form (`convert`, made of `layers`).

In that form activations are [B, K·C, …], lane after lane in the channels, so that whatever works on each channel or
element alone (pooling, activations, residuals, means over pixels, flattening) needs no change.
"""
