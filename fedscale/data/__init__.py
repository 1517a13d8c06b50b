"""Images: shards in and out, the long tail, the partition, the client store, augmentation.

`sources/` and `build` make shards out of originals; `manifest`, `shards`, `store`, `partition` and `augment` are what a
run reads, and import nothing heavier than numpy, Pillow and (augment alone) torch.
"""
