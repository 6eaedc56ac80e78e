"""What every reading method shares: contract, backbone, assembly, training, evaluation."""
