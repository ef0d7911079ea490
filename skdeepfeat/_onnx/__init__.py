"""From a fitted estimator to one ONNX file, which needs neither torch nor scikit-learn.

The network with its pooling is exported by torch (``networks``), what follows it is
converted by skl2onnx (``heads``), and both become one graph (``exporting``), if
requested with the resize of photos before it (``resizing``). The graph is compared with
the estimator (``checking``) and says what it is (``metadata``).
"""
