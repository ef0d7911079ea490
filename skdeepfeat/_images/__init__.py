"""The first station of the walk: X → images → batches of network input.

- ``input``: X as an estimator receives it
- ``containers``, ``recognition``, ``flat_rows``, ``sequences``: what X may be
- ``buffers``: rows whose memory is filled again for the next one are copied
- ``kinds``, ``cells``, ``references``: what one image may be, and its key
- ``windows``, ``unread``: the rows of one call, read some at a time, here or elsewhere
- ``decoding``, ``formats``, ``samples``, ``bit_depth``, ``orientation``: bytes → pixels
- ``recipe``, ``preparing``: pixels → network input
- ``batches``, ``budget``: threads fill a batch, within a bound of memory
- ``crew``, ``decoder``, ``slots``: processes that decode beside a GPU
- ``reasons``: what errors of rows say

Nothing here imports torch.
"""
