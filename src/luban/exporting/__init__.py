"""Export: a network as a file that other programs run, and the proof that the file says what the network says.

`onnx_file` writes ONNX, `onnx_module` runs such a file with onnxruntime, `parity` compares the two. The packages of the
extra `onnx` are imported when something is written or read, not before.
"""
