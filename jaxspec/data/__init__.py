"""Data: the embedded corpus, prepared data sets, tokenizers, packing, anchors and the pipeline."""
