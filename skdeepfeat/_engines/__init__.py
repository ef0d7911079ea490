"""What runs a network: batches → activations → pooled rows.

``base`` is the protocol of a network that an engine runs, ``torch`` and ``openvino``
implement it, ``devices`` resolves "auto", and ``running`` drives one or several
devices. ``openvino_conversion`` converts networks from torch and ``openvino_cache``
keeps them on disk; ``tf32`` controls how a GPU rounds.
"""
