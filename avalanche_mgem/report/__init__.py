"""What finished runs show: tables, figures, a TensorBoard log, and a folder of them all."""
