"""From a record with weights to a network that returns the requested layers.

A network is built (``building``, ``filling``), shared by all estimators (``sharing``),
traced (``tracer``, ``tracing``), cut after the last requested layer (``structure``,
``cutting``) and rewritten to run faster (``rewriting``). ``layers`` and ``discovery``
say which layers there are; ``identity`` says what a network is known by.
"""
