"""Export a checkpoint: ONNX in fp32 and fp16, exact graph rewrites, and the parity certificate that
gates release.
"""
