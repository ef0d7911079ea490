"""From a record and its weights to a network that returns the requested layers.

- ``building``, ``loading``, ``sharing``: a network with its weights, built once
- ``generators``: random numbers of torch, which threads draw in turns
- ``tracer``, ``trial``, ``whole``, ``comparison``: its graph, which is compared with it
- ``overwriting``, ``repeats``: the graph changes no value and repeats no step
- ``structure``, ``activations``: the graph is cut after the last requested layer
- ``rewriting``, ``simplifying``, ``channels_last``: and runs faster
- ``hooks``: networks that cannot be traced
- ``pooling``: activations → rows
- ``layers``, ``discovery``, ``stages``, ``intermediates``: which layers there are
- ``head``, ``end``, ``end_when_run``, ``classifiers``: the classifier of a network
- ``row_layouts``, ``token_joins``, ``constant_tokens``, ``map_areas``: what the axes of
  an activation mean, and which tokens belong to no place in the image
- ``averages``, ``places``: vectors that are averages of maps
- ``image_size``: errors of networks that do not take this size
- ``identity``, ``descriptions``, ``code_digest``: what identifies a network
- ``inspection``: what records ask of the modules above
- ``embedding``: the weights as arrays
- ``smallnets``, ``efficientnet_lite``, ``timm_networks``, ``timm_steps``: networks of
  this package and of timm
- ``text_layers``, ``token_networks``, ``token_modules``, ``token_pooling``,
  ``encoders``, ``encoder_states``: networks of texts
"""
