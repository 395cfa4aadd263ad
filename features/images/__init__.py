"""Files on disk to arrays: scan and cache, decode, masks, pairs and crops, preprocessing."""
