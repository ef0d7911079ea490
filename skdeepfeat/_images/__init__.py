"""The first station of the walk: X → images → batches of network input.

``containers`` and ``sequences`` say what X may be, ``cells`` what one image may be and
how it is identified, ``decoding`` and its helpers how its pixels are read, ``recipe``
how pixels become network input, and ``batches`` how threads fill a batch.
Nothing here imports torch.
"""
