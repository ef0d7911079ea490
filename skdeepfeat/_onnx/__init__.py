"""From a fitted estimator to one ONNX file, which needs neither torch nor scikit-learn.

- ``exporting``: `to_onnx`, which joins the parts to one graph
- ``networks``: the network with its pooling, exported by torch
- ``heads``, ``dense``, ``simpler``: what follows it, converted by skl2onnx
- ``resizing``: the resize of photos, if requested
- ``examples``, ``checking``: the graph is compared with the estimator on images
- ``metadata``: what the file says about itself
- ``extra``: the packages and versions that this needs
"""
