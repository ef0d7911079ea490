"""What runs a network: batches → activations → pooled rows.

``base`` is the protocol of an engine, ``torch`` and ``openvino`` implement it,
``devices`` resolves "auto", and ``running`` drives one or several devices.
"""
