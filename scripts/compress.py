"""Fine-tune, prune, distil, quantize, measure and push a model: the same as `hf-efficient compress`.

python scripts/compress.py --model_name_or_path MODEL --train_file train.csv --validation_file dev.csv \
    --target_speedup 2 --scheme int8_static --output_dir out
"""

import sys

from hf_efficient.cli import main

if __name__ == "__main__":
    sys.exit(main(["compress", *sys.argv[1:]]))
