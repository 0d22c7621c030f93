"""The forward pass of quantized files in C, for processors whose vector instructions a prebuilt ggml leaves unused."""
