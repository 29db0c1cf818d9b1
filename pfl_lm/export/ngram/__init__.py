"""The trained model as an n-gram: for decoders that read ARPA, and keyboards that read AOSP's."""
