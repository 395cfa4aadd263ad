"""The feature store on Icechunk. `feature_store.FeatureStore` is the way in."""
