"""fedscale: federated learning on long-tailed data, with a multimodal LLM helping on the server."""

__version__ = "0.1.0"
