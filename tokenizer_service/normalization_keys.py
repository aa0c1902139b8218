"""Keys that tell how a text is changed before it is cut into tokens."""

ADD_SPACE_PREFIX_KEY = "tokenizer.ggml.add_space_prefix"
REMOVE_EXTRA_SPACES_KEY = "tokenizer.ggml.remove_extra_whitespaces"
CHARACTER_MAP_KEY = "tokenizer.ggml.precompiled_charsmap"
LOWERCASE_KEY = "tokenizer.ggml.normalizer.lowercase"
STRIP_ACCENTS_KEY = "tokenizer.ggml.normalizer.strip_accents"
