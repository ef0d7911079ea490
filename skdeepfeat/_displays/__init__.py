"""Figures of training histories, of searches over layers, and of activation maps.

``base`` is what displays of curves share; ``training_history``, ``layer_depth`` and
``activation_map`` draw one figure each. Matplotlib is imported only when a figure is
drawn; the extra [plot] installs it.
"""
