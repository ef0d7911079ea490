"""From a record and its weights to a network that returns the requested layers.

A network is built (``building``, ``loading``) and shared by all estimators
(``sharing``). It is traced (``tracer``, ``trial``), cut after the last requested layer
(``structure``, ``activations``) and rewritten to run faster (``rewriting``).
``layers`` and ``discovery`` list its layers; ``identity`` computes its digest.
"""
