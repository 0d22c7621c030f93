"""The forward pass of Q8_0 files in C, for processors whose vector instructions a prebuilt ggml leaves unused."""
