"""What runs a network: batches → activations → pooled rows.

- ``base``: the protocol of a network that an engine runs
- ``torch``, ``openvino``: networks of images
- ``tokens``, ``words``: networks of texts, and word vectors
- ``devices``: resolves "auto"
- ``running``: drives one or several devices
- ``openvino_conversion``, ``openvino_cache``, ``openvino_import``: networks converted
  from torch and kept on disk
- ``tf32``: controls how a GPU rounds
"""
