"""The Llama transformer: configuration, blocks, attention and the KV cache."""
