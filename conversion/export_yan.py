"""
A YAN model as graphs that ONNX Runtime runs, see `modeling_yan/serving/export.py`; `yan export` is the same.

    python conversion/export_yan.py --model examples/models/yan-e2e --output_dir outputs/onnx
"""

from modeling_yan.common.arguments import run_script
from modeling_yan.serving.export import main

if __name__ == "__main__":
    run_script(main)
