"""Array functions shared by the models, losses and verification rules: arrays in, arrays out."""
