"""
Serves a model over HTTP, as OpenAI's completions API; `yan serve` under the name of a script. docs/serving.md shows how
to call it.

    python examples/serve.py --model examples/models/yan-e2e --port 8000
"""

from modeling_yan.common.arguments import run_script
from modeling_yan.serving.server import main

if __name__ == "__main__":
    run_script(main)
